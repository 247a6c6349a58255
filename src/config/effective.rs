//! The configuration in effect, as TOML: what `smcached check` prints. Reading it gives the same again.

use std::path::Path;
use std::time::Duration;

use toml::{Table, Value};

use super::{
    AfterTakeover, AuditConfig, AuditOutput, Batch, Bind, Config, Layout, ListenerConfig, LogFormat,
    LogLevel, OnChange, PolicyConfig, ProcessConfig, ProjectConfig, Reload, SourceConfig, TokenConfig,
};
use crate::secret::Unlisted;
use crate::units::{show_duration, show_size};

impl Config {
    /// The same as JSON, for programs.
    pub fn to_json(&self) -> String {
        // Text and numbers always serialize into memory.
        let document = serde_json::to_value(self.sections().collect::<Table>()).unwrap_or_default();
        format!("{document:#}\n")
    }

    /// Every key with its value, defaults included.
    pub fn to_toml(&self) -> String {
        // One document a section keeps the order in which people read them.
        let sections = self.sections().map(|section| Table::from_iter([section]).to_string());
        sections.collect::<Vec<_>>().join("\n")
    }

    /// The sections that say something, in the order in which people read them.
    fn sections(&self) -> impl Iterator<Item = (String, Value)> {
        let source = match &self.source {
            SourceConfig::Aws => table([("kind", Some("aws".into()))]),
            SourceConfig::File { path } => table([("kind", Some("file".into())), ("path", Some(file(path)))]),
        };
        let aws = table([
            ("region", text(self.aws.region.as_deref())),
            ("endpoint_url", text(self.aws.endpoint_url.as_deref())),
            ("sts_endpoint_url", text(self.aws.sts_endpoint_url.as_deref())),
            ("profile", text(self.aws.profile.as_deref())),
            ("role_arn", text(self.aws.role_arn.as_deref())),
            ("connect_timeout", Some(time(self.aws.connect_timeout))),
            ("attempt_timeout", Some(time(self.aws.attempt_timeout))),
            ("max_attempts", Some(self.aws.max_attempts.into())),
        ]);
        let cache = &self.cache;
        let cache = table([
            ("ttl", Some(time(cache.ttl))),
            ("stale_while_revalidate", Some(time(cache.stale_while_revalidate))),
            ("stale_if_error", Some(time(cache.stale_if_error))),
            ("negative_ttl", Some(time(cache.negative_ttl))),
            ("idle_timeout", Some(time(cache.idle_timeout))),
            ("fetch_timeout", Some(time(cache.fetch_timeout))),
            ("revalidate_timeout", Some(time(cache.revalidate_timeout))),
            ("max_bytes", Some(show_size(cache.max_bytes).into())),
            ("preload", Some(cache.preload.clone().into())),
            ("preload_tags", Some(cache.preload_tags.clone().into())),
            ("preload_timeout", Some(time(cache.preload_timeout))),
            ("unlisted_groups", Some(unlisted(cache.unlisted_groups).into())),
        ]);
        let refresh = table([
            ("batch", Some(batch(self.refresh.batch).into())),
            ("max_concurrency", Some(self.refresh.max_concurrency.into())),
            ("rate", Some(self.refresh.rate.into())),
            ("rate_per_caller", Some(self.refresh.rate_per_caller.into())),
        ]);
        let server = table([
            ("max_connections", Some(self.server.max_connections.into())),
            ("max_connections_per_uid", Some(self.server.max_connections_per_uid.into())),
            ("max_waiting", Some(self.server.max_waiting.into())),
            ("idle_timeout", Some(time(self.server.idle_timeout))),
            ("header_timeout", Some(time(self.server.header_timeout))),
            ("write_timeout", Some(time(self.server.write_timeout))),
            ("drain_timeout", Some(time(self.server.drain_timeout))),
        ]);
        let ops = self.ops.tcp.map_or_else(|| "off".to_owned(), |addr| addr.to_string());
        let log = table([
            ("format", Some(format(self.log.format).into())),
            ("level", Some(level(self.log.level).into())),
        ]);
        let groups = self.groups.iter().map(|(name, group)| {
            let group = table([
                ("prefix", text(Some(&group.prefix))),
                ("region", text(group.region.as_deref())),
                ("role_arn", text(group.role_arn.as_deref())),
                ("ttl", group.ttl.map(time)),
                ("fallback_regions", list(&group.fallback_regions)),
            ]);
            (name.clone(), Value::Table(group))
        });
        let listeners =
            self.listeners.iter().map(|listener| Value::Table(self::listener(listener))).collect();
        let policies = self.policies.iter().map(|policy| Value::Table(self::policy(policy))).collect();
        let projects: Vec<_> =
            self.projects.iter().map(|project| Value::Table(self::project(project))).collect();
        let reload = match self.reload {
            Reload::Signal => "signal",
            Reload::Watch => "watch",
        };
        let sections = [
            ("reload", reload.into()),
            ("process", process(&self.process).into()),
            ("source", source.into()),
            ("aws", aws.into()),
            ("cache", cache.into()),
            ("refresh", refresh.into()),
            ("server", server.into()),
            ("listener", Value::Array(listeners)),
            ("policy", Value::Array(policies)),
            ("project", Value::Array(projects)),
            ("ops", table([("tcp", Some(ops.into()))]).into()),
            ("log", log.into()),
            ("audit", audit(&self.audit).into()),
            ("groups", Value::Table(groups.collect())),
        ];
        let is_empty = |value: &Value| match value {
            Value::Table(table) => table.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        };
        sections
            .map(|(name, value)| (name.to_owned(), value))
            .into_iter()
            .filter(move |(_, value)| !is_empty(value))
    }
}

fn audit(audit: &AuditConfig) -> Table {
    let output = match &audit.output {
        AuditOutput::Off => "off".into(),
        AuditOutput::Stdout => "stdout".into(),
        AuditOutput::File(path) => file(path),
    };
    table([
        ("output", Some(output)),
        ("max_bytes", Some(show_size(audit.max_bytes).into())),
        ("keep", Some(audit.keep.into())),
        ("mode", Some(octal(audit.mode))),
    ])
}

fn process(process: &ProcessConfig) -> Table {
    let after_takeover = match process.after_takeover {
        AfterTakeover::Exit => "exit",
        AfterTakeover::Wait => "wait",
    };
    table([
        ("user", text(process.user.as_deref())),
        ("group", text(process.group.as_deref())),
        ("takeover", process.takeover.as_deref().map(file)),
        ("after_takeover", process.takeover.as_ref().map(|_| after_takeover.into())),
    ])
}

fn listener(listener: &ListenerConfig) -> Table {
    let allow_secrets = Some(listener.allow_secrets.clone()).filter(|patterns| !patterns.is_empty());
    let allow_secrets = ("allow_secrets", allow_secrets.map(Value::from));
    let allow_roles = ("allow_roles", list(&listener.allow_roles));
    match &listener.bind {
        Bind::Unix { path, mode, directory_mode, owner, group, allow_uids } => table([
            ("unix", Some(file(path))),
            ("mode", Some(octal(*mode))),
            ("directory_mode", directory_mode.map(octal)),
            ("owner", text(owner.as_deref())),
            ("group", text(group.as_deref())),
            ("allow_uids", (!allow_uids.is_empty()).then(|| ids(allow_uids))),
            allow_secrets,
            allow_roles,
        ]),
        Bind::Tcp { addr, token, allowed_hosts, allow_non_loopback } => {
            let token = match token {
                TokenConfig::None => ("token", Some("none".into())),
                TokenConfig::File(path) => ("token_file", Some(file(path))),
            };
            let hosts = Some(allowed_hosts.clone()).filter(|hosts| !hosts.is_empty());
            table([
                ("tcp", Some(addr.to_string().into())),
                token,
                ("allowed_hosts", hosts.map(Value::from)),
                ("allow_non_loopback", allow_non_loopback.then_some(true.into())),
                allow_secrets,
                allow_roles,
            ])
        }
    }
}

fn policy(policy: &PolicyConfig) -> Table {
    table([
        ("listener", text(policy.listener.as_deref())),
        ("uids", policy.uids.as_deref().map(ids)),
        ("gids", policy.gids.as_deref().map(ids)),
        ("allow_secrets", list(&policy.allow_secrets)),
    ])
}

fn project(project: &ProjectConfig) -> Table {
    let layout = match project.layout {
        Layout::Flyte => "flyte",
        Layout::Plain => "plain",
    };
    let secrets = project.secrets.iter().map(|file| {
        Value::Table(table([
            ("secret", text(Some(&file.secret))),
            ("version", text(file.version.as_deref())),
            ("field", text(file.field.as_deref())),
            ("path", text(file.path.as_deref())),
        ]))
    });
    let on_change = project.on_change.as_ref().map(|on_change| match on_change {
        OnChange::Command(words) => table([("command", list(words))]),
        OnChange::Signal { signal, pid_file } => {
            table([("signal", text(Some(signal))), ("pid_file", Some(file(pid_file)))])
        }
    });
    table([
        ("dir", Some(file(&project.dir))),
        ("layout", text(Some(layout))),
        ("secrets", Some(Value::Array(secrets.collect()))),
        ("mode", Some(octal(project.mode))),
        ("owner", text(project.owner.as_deref())),
        ("group", text(project.group.as_deref())),
        ("together", Some(project.together.into())),
        ("on_change", on_change.map(Value::Table)),
    ])
}

fn table<const N: usize>(entries: [(&str, Option<Value>); N]) -> Table {
    entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
}

fn text(text: Option<&str>) -> Option<Value> {
    text.map(Value::from)
}

fn list(items: &[String]) -> Option<Value> {
    (!items.is_empty()).then(|| items.to_vec().into())
}

fn ids(ids: &[u32]) -> Value {
    ids.iter().copied().map(i64::from).collect::<Vec<_>>().into()
}

fn time(duration: Duration) -> Value {
    show_duration(duration).into()
}

fn octal(mode: u32) -> Value {
    format!("{mode:04o}").into()
}

/// Paths came out of a TOML string, so nothing is lost.
fn file(path: &Path) -> Value {
    path.to_string_lossy().into_owned().into()
}

fn unlisted(unlisted: Unlisted) -> &'static str {
    match unlisted {
        Unlisted::Allow => "allow",
        Unlisted::Deny => "deny",
    }
}

fn batch(batch: Batch) -> &'static str {
    match batch {
        Batch::Auto => "auto",
        Batch::Off => "off",
    }
}

fn format(format: LogFormat) -> &'static str {
    match format {
        LogFormat::Json => "json",
        LogFormat::Text => "text",
    }
}

fn level(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_reads_back_as_the_same() {
        let full = r#"
            reload = "watch"
            [process]
            user = "smcached"
            group = "1000"
            takeover = "/run/next/socket"
            after_takeover = "wait"
            [source]
            kind = "file"
            path = "s.toml"
            [aws]
            region = "eu-west-1"
            role_arn = "arn:aws:iam::123456789012:role/reader"
            [cache]
            ttl = "90s"
            preload = ["team-a/db"]
            unlisted_groups = "deny"
            [[listener]]
            unix = "/run/x/socket"
            mode = "0600"
            owner = "root"
            allow_uids = [1, 2]
            allow_secrets = ["a/*"]
            allow_roles = ["arn:aws:iam::123456789012:role/reader"]
            [[listener]]
            tcp = "0.0.0.0:1"
            allow_non_loopback = true
            allowed_hosts = ["cache.internal"]
            token = "none"
            [[project]]
            dir = "/run/secrets/flyte"
            layout = "flyte"
            secrets = ["a/b", { secret = "c/d", version = "AWSPREVIOUS", field = "x", path = "e" }]
            mode = "0440"
            owner = "1000"
            together = true
            on_change = { command = ["/bin/true", "x"] }
            [[project]]
            dir = "/run/secrets/other"
            secrets = ["a"]
            on_change = { signal = "SIGHUP", pid_file = "/run/x.pid" }
            [ops]
            tcp = "off"
            [log]
            level = "warn"
            [audit]
            output = "/var/log/smcached/audit.log"
            max_bytes = "1MiB"
            keep = 2
            mode = "0640"
            [groups."a/b"]
            prefix = "x/"
            ttl = "1m30s"
            region = "us-west-2"
            fallback_regions = ["us-east-1"]
        "#;
        for text in ["", "[audit]\noutput = \"stdout\"", full] {
            let config = Config::parse("t.toml", text).unwrap_or_else(|error| panic!("{error}"));
            let shown = config.to_toml();
            let again =
                Config::parse("shown.toml", &shown).unwrap_or_else(|error| panic!("{error}\n{shown}"));
            assert_eq!(again, config);
        }
    }

    #[test]
    fn defaults_are_shown_in_plain_units() {
        let shown = Config::default().to_toml();
        for line in ["ttl = \"5m\"", "stale_if_error = \"24h\"", "max_bytes = \"64MiB\"", "mode = \"0660\""] {
            assert!(shown.contains(line), "{line} is not in\n{shown}");
        }
    }
}
