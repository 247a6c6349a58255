//! From a document to a [`Config`]: one function a section, each key with what it accepts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::listener::{check_addresses, listener, policy, socket_path};
use super::project;
use super::{
    AfterTakeover, AuditConfig, AuditOutput, AwsConfig, Batch, Bind, CacheConfig, Config, GroupConfig,
    ListenerConfig, LogConfig, LogFormat, LogLevel, OpsConfig, ProcessConfig, RefreshConfig, Reload,
    ServerConfig, SourceConfig,
};
use crate::document::{Section, Value};
use crate::secret::{SecretId, SecretPath, Unlisted, is_region};
use crate::units::{self, DURATION, SIZE};

/// The longest tag, key and value together: 128 and 256 characters
/// (<https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_Tag.html>), of up to four bytes each.
const MAX_TAG: usize = (128 + 1 + 256) * 4;

/// Reads all sections. Absent keys have their defaults; wrong ones are complained about.
pub(super) fn config(root: &Section<'_>) -> Option<Config> {
    let default = Config::default();
    let reload = root.get("reload", "\"signal\" or \"watch\"", |value| match value.text()? {
        "signal" => Some(Reload::Signal),
        "watch" => Some(Reload::Watch),
        _ => None,
    });
    let reload = reload.unwrap_or(default.reload);
    let process = process(&root.section("process"));
    let source = source(&root.section("source"));
    let aws = aws(&root.section("aws"), &default.aws);
    let cache = cache(&root.section("cache"), &default.cache);
    let refresh = refresh(&root.section("refresh"), &default.refresh);
    let server = server(&root.section("server"), &default.server);
    let ops = ops(&root.section("ops"), &default.ops);
    let log = log(&root.section("log"), &default.log);
    let audit = audit(&root.section("audit"), &default.audit);
    let groups = groups(root);
    let sections = root.sections("listener");
    let listeners =
        if sections.is_empty() { default.listeners } else { sections.iter().filter_map(listener).collect() };
    check_addresses(root, &listeners, &ops);
    check_takeover(root, &process, &listeners);
    let policies = root.sections("policy").iter().filter_map(|section| policy(section, &listeners)).collect();
    let projects: Vec<_> = root.sections("project").iter().filter_map(project::project).collect();
    project::check_targets(root, &projects);
    if !cache.preload_tags.is_empty() && matches!(source, Some(SourceConfig::File { .. })) {
        root.complain("cache.preload_tags needs secrets that come from AWS");
    }
    Some(Config {
        reload,
        process,
        source: source?,
        aws,
        cache,
        refresh,
        server,
        listeners,
        policies,
        projects,
        ops,
        log,
        audit,
        groups,
    })
}

fn process(section: &Section<'_>) -> ProcessConfig {
    let user = section.get("user", "a user's name or number", word);
    let group = section.entry("group", "a group's name or number", word);
    let takeover = section.get("takeover", "the path of a socket, of at most 106 bytes", socket_path);
    let after_takeover =
        section.entry("after_takeover", "\"exit\" or \"wait\"", |value| match value.text()? {
            "exit" => Some(AfterTakeover::Exit),
            "wait" => Some(AfterTakeover::Wait),
            _ => None,
        });
    section.refuse_the_rest();
    if let Some(group) = group.as_ref().filter(|_| user.is_none()) {
        section.contradicts("group", group, "only with a user");
    }
    if let Some(after) = after_takeover.as_ref().filter(|_| takeover.is_none()) {
        section.contradicts("after_takeover", after, "only with takeover");
    }
    ProcessConfig {
        user,
        group: group.map(|group| group.value),
        takeover,
        after_takeover: after_takeover.map(|after| after.value).unwrap_or_default(),
    }
}

/// Whoever is let into a listener's directory, as a container that mounts it, must not come upon the socket by which all
/// that is held can be had.
fn check_takeover(root: &Section<'_>, process: &ProcessConfig, listeners: &[ListenerConfig]) {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let Some(takeover) = process.takeover.as_deref().map(absolute) else { return };
    for listener in listeners {
        let Bind::Unix { path, .. } = &listener.bind else { continue };
        let path = absolute(path);
        if path.parent().is_some_and(|directory| takeover.starts_with(directory)) {
            let what = format!(
                "process.takeover is below the directory of the listener {}, which callers may enter; give it a \
                 directory of its own elsewhere, such as \"/run/smcached-takeover/socket\"",
                path.display()
            );
            root.complain(&what);
        }
    }
}

fn source(section: &Section<'_>) -> Option<SourceConfig> {
    let kind = section.entry("kind", "\"aws\" or \"file\"", |value| {
        value.text().filter(|kind| matches!(*kind, "aws" | "file")).map(str::to_owned)
    });
    let path = section.entry("path", "the path of a TOML file of secrets", path);
    section.refuse_the_rest();
    let is_file = kind.as_ref().is_some_and(|kind| kind.value == "file");
    match (is_file, path) {
        (true, Some(path)) => Some(SourceConfig::File { path: path.value }),
        (true, None) => {
            section.complain("kind = \"file\" needs a path");
            None
        }
        (false, Some(path)) => {
            section.contradicts("path", &path, "only kind = \"file\" has a path");
            None
        }
        (false, None) => Some(SourceConfig::Aws),
    }
}

fn aws(section: &Section<'_>, default: &AwsConfig) -> AwsConfig {
    let connect_timeout = duration(section, "connect_timeout", AT_LEAST_A_MILLISECOND);
    let attempt_timeout = duration(section, "attempt_timeout", AT_LEAST_A_MILLISECOND);
    let aws = AwsConfig {
        region: section.get("region", REGION, region),
        endpoint_url: section.private_entry("endpoint_url", URL, url).map(|url| url.value),
        sts_endpoint_url: section.private_entry("sts_endpoint_url", URL, url).map(|url| url.value),
        profile: section.get("profile", "the name of a profile", word),
        role_arn: section.get("role_arn", ROLE, role_arn),
        connect_timeout: connect_timeout.unwrap_or(default.connect_timeout),
        attempt_timeout: attempt_timeout.unwrap_or(default.attempt_timeout),
        max_attempts: number(section, "max_attempts", 1, 10).unwrap_or(default.max_attempts),
    };
    section.refuse_the_rest();
    if aws.connect_timeout > aws.attempt_timeout {
        section.complain("connect_timeout is longer than attempt_timeout, which includes it");
    }
    aws
}

fn cache(section: &Section<'_>, default: &CacheConfig) -> CacheConfig {
    let any = |key, default| duration(section, key, Duration::ZERO).unwrap_or(default);
    let some = |key, default| duration(section, key, AT_LEAST_A_MILLISECOND).unwrap_or(default);
    let preload = |value: Value<'_>| {
        let texts = value.texts()?;
        texts.iter().all(|raw| SecretPath::parse(raw).is_ok()).then_some(texts)
    };
    let tags = |value: Value<'_>| {
        let is_tag = |tag: &String| !tag.is_empty() && !tag.starts_with('=') && tag.len() <= MAX_TAG;
        value.texts().filter(|tags| tags.iter().all(is_tag))
    };
    let unlisted = |value: Value<'_>| match value.text()? {
        "allow" => Some(Unlisted::Allow),
        "deny" => Some(Unlisted::Deny),
        _ => None,
    };
    let cache = CacheConfig {
        ttl: some("ttl", default.ttl),
        stale_while_revalidate: any("stale_while_revalidate", default.stale_while_revalidate),
        stale_if_error: any("stale_if_error", default.stale_if_error),
        negative_ttl: any("negative_ttl", default.negative_ttl),
        idle_timeout: any("idle_timeout", default.idle_timeout),
        fetch_timeout: some("fetch_timeout", default.fetch_timeout),
        revalidate_timeout: any("revalidate_timeout", default.revalidate_timeout),
        max_bytes: section.get("max_bytes", SIZE, |value| size(value, 1)).unwrap_or(default.max_bytes),
        preload: section
            .get("preload", "a list of \"<group>/<key>\", as in the URL path", preload)
            .unwrap_or_default(),
        preload_tags: section
            .get("preload_tags", "a list of tags, \"<key>=<value>\" or \"<key>\"", tags)
            .unwrap_or_default(),
        preload_timeout: any("preload_timeout", default.preload_timeout),
        unlisted_groups: section
            .get("unlisted_groups", "\"allow\" or \"deny\"", unlisted)
            .unwrap_or_default(),
    };
    section.refuse_the_rest();
    if cache.revalidate_timeout > cache.fetch_timeout {
        section.complain(
            "revalidate_timeout is longer than fetch_timeout; who has a value must not wait longer",
        );
    }
    cache
}

fn refresh(section: &Section<'_>, default: &RefreshConfig) -> RefreshConfig {
    let batch = |value: Value<'_>| match value.text()? {
        "auto" => Some(Batch::Auto),
        "off" => Some(Batch::Off),
        _ => None,
    };
    let rate = number(section, "rate", 1, 10_000).unwrap_or(default.rate);
    let refresh = RefreshConfig {
        batch: section.get("batch", "\"auto\" or \"off\"", batch).unwrap_or(default.batch),
        max_concurrency: number(section, "max_concurrency", 1, 1000).unwrap_or(default.max_concurrency),
        rate,
        // Half of it, so that no caller alone uses up all of it.
        rate_per_caller: number(section, "rate_per_caller", 1, 10_000).unwrap_or(rate.div_ceil(2)),
    };
    section.refuse_the_rest();
    refresh
}

fn server(section: &Section<'_>, default: &ServerConfig) -> ServerConfig {
    let timeout = |key, default| duration(section, key, AT_LEAST_A_MILLISECOND).unwrap_or(default);
    let max = |key| number(section, key, 1, 1_000_000);
    let max_connections = max("max_connections").unwrap_or(default.max_connections);
    let server = ServerConfig {
        max_connections,
        max_connections_per_uid: max("max_connections_per_uid").unwrap_or(max_connections),
        // A tenth is left to those who do not wait.
        max_waiting: max("max_waiting")
            .unwrap_or_else(|| (max_connections - max_connections.div_ceil(10)).max(1)),
        idle_timeout: timeout("idle_timeout", default.idle_timeout),
        header_timeout: timeout("header_timeout", default.header_timeout),
        write_timeout: timeout("write_timeout", default.write_timeout),
        drain_timeout: duration(section, "drain_timeout", Duration::ZERO).unwrap_or(default.drain_timeout),
    };
    section.refuse_the_rest();
    server
}

fn ops(section: &Section<'_>, default: &OpsConfig) -> OpsConfig {
    let tcp = section.get("tcp", "an address such as \"127.0.0.1:9273\", or \"off\"", |value| {
        if value.text()? == "off" { Some(None) } else { address(value).map(Some) }
    });
    section.refuse_the_rest();
    OpsConfig { tcp: tcp.unwrap_or(default.tcp) }
}

fn log(section: &Section<'_>, default: &LogConfig) -> LogConfig {
    let format = |value: Value<'_>| match value.text()? {
        "json" => Some(LogFormat::Json),
        "text" => Some(LogFormat::Text),
        _ => None,
    };
    let level = |value: Value<'_>| match value.text()? {
        "error" => Some(LogLevel::Error),
        "warn" => Some(LogLevel::Warn),
        "info" => Some(LogLevel::Info),
        "debug" => Some(LogLevel::Debug),
        "trace" => Some(LogLevel::Trace),
        _ => None,
    };
    let levels = "\"error\", \"warn\", \"info\", \"debug\" or \"trace\"";
    let log = LogConfig {
        format: section.get("format", "\"json\" or \"text\"", format).unwrap_or(default.format),
        level: section.get("level", levels, level).unwrap_or(default.level),
    };
    section.refuse_the_rest();
    log
}

fn audit(section: &Section<'_>, default: &AuditConfig) -> AuditConfig {
    let output = |value: Value<'_>| match value.text()? {
        "off" => Some(AuditOutput::Off),
        "stdout" => Some(AuditOutput::Stdout),
        // A word that is misspelt is not the name of a file.
        text => {
            path(value).filter(|path| text.contains('/') && path.file_name().is_some()).map(AuditOutput::File)
        }
    };
    let outputs = "\"off\", \"stdout\" or the path of a file, with a slash in it";
    let sizes = format!("{SIZE}, at least {}", units::show_size(MIN_AUDIT_FILE));
    let audit = AuditConfig {
        output: section.get("output", outputs, output).unwrap_or_else(|| default.output.clone()),
        max_bytes: section
            .get("max_bytes", &sizes, |value| size(value, MIN_AUDIT_FILE))
            .unwrap_or(default.max_bytes),
        keep: number(section, "keep", 1, 1000).unwrap_or(default.keep),
        mode: section.get("mode", MODE, mode).unwrap_or(default.mode),
    };
    section.refuse_the_rest();
    audit
}

fn groups(root: &Section<'_>) -> BTreeMap<String, GroupConfig> {
    let mut groups = BTreeMap::new();
    for (name, section) in root.named_sections("groups") {
        if name.is_empty() {
            section.complain("a group needs a name");
        }
        let accepted = "the beginning of a secret's name, or of an ARN";
        let prefix = section.get("prefix", accepted, |value| {
            // A prefix is right if something can follow it.
            value.text().filter(|prefix| SecretId::parse(&format!("{prefix}x")).is_ok()).map(str::to_owned)
        });
        let region = section.entry("region", REGION, region);
        let accepted = "a list of regions such as [\"us-east-1\"]";
        let fallback_regions = section.entry("fallback_regions", accepted, |value| value.list(self::region));
        let group = GroupConfig {
            prefix: prefix.unwrap_or_default(),
            region: region.as_ref().map(|entry| entry.value.clone()),
            role_arn: section.get("role_arn", ROLE, role_arn),
            ttl: duration(&section, "ttl", AT_LEAST_A_MILLISECOND),
            fallback_regions: fallback_regions.as_ref().map(|entry| entry.value.clone()).unwrap_or_default(),
        };
        section.refuse_the_rest();
        if let Some(regions) =
            fallback_regions.filter(|_| region.is_none() && !group.prefix.starts_with("arn:"))
        {
            section.contradicts(
                "fallback_regions",
                &regions,
                "the group has no region of its own to fall back from",
            );
        }
        if let Some(region) = region.filter(|_| group.prefix.starts_with("arn:")) {
            section.contradicts("region", &region, "the prefix is an ARN, which names its region");
        }
        groups.insert(name, group);
    }
    groups
}

/// The smallest file that the audit trail is cut into: less would be moved away all the time.
const MIN_AUDIT_FILE: u64 = 64 << 10;

pub(super) const MODE: &str = "octal permissions such as \"0660\"";
const AT_LEAST_A_MILLISECOND: Duration = Duration::from_millis(1);
const REGION: &str = "a region such as \"us-west-2\"";
const URL: &str = "a URL such as \"https://vpce-1234.secretsmanager.us-west-2.vpce.amazonaws.com\"";
const ROLE: &str = "the ARN of a role, \"arn:aws:iam::<12 digits>:role/<name>\"";

fn duration(section: &Section<'_>, key: &'static str, least: Duration) -> Option<Duration> {
    let accepted = if least.is_zero() { DURATION.to_owned() } else { format!("{DURATION}, above 0") };
    section.get(key, &accepted, |value| {
        value.text().and_then(units::parse_duration).filter(|duration| *duration >= least)
    })
}

fn number(section: &Section<'_>, key: &'static str, least: u32, most: u32) -> Option<u32> {
    section.get(key, &format!("a number from {least} to {most}"), |value| {
        value
            .number()
            .and_then(|number| u32::try_from(number).ok())
            .filter(|number| (least..=most).contains(number))
    })
}

fn size(value: Value<'_>, least: u64) -> Option<u64> {
    let bytes = value.text().map_or_else(|| value.number(), units::parse_size);
    bytes.filter(|bytes| *bytes >= least)
}

pub(super) fn word(value: Value<'_>) -> Option<String> {
    value.text().filter(|text| !text.is_empty()).map(str::to_owned)
}

pub(super) fn path(value: Value<'_>) -> Option<PathBuf> {
    value.text().filter(|path| !path.is_empty() && !path.contains('\0')).map(PathBuf::from)
}

pub(super) fn address(value: Value<'_>) -> Option<SocketAddr> {
    value.text()?.parse().ok()
}

pub(super) fn mode(value: Value<'_>) -> Option<u32> {
    let text = value.text()?;
    let is_octal = (3..=4).contains(&text.len()) && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    u32::from_str_radix(text, 8).ok().filter(|mode| is_octal && *mode <= 0o777)
}

fn region(value: Value<'_>) -> Option<String> {
    word(value).filter(|region| is_region(region))
}

fn url(value: Value<'_>) -> Option<String> {
    let text = value.text()?;
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"))?;
    let host = rest.split(['/', '?', '#']).next()?;
    let is_plain =
        !host.is_empty() && !host.contains('@') && text.bytes().all(|byte| byte.is_ascii_graphic());
    is_plain.then(|| text.to_owned())
}

pub(super) fn role_arn(value: Value<'_>) -> Option<String> {
    let text = value.text()?;
    let mut parts = text.splitn(6, ':');
    let head = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
    let (account, role) = (parts.next()?, parts.next()?);
    let is_role = matches!(head, ["arn", partition, "iam", ""] if partition.starts_with("aws"))
        && account.len() == 12
        && account.bytes().all(|byte| byte.is_ascii_digit())
        && role.strip_prefix("role/").is_some_and(|name| !name.is_empty());
    is_role.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn errors(text: &str) -> Vec<String> {
        Config::parse("t.toml", text).map_or_else(|complaints| complaints.lines().to_vec(), |_| Vec::new())
    }

    #[test]
    fn the_socket_of_a_takeover_is_kept_apart_from_those_of_callers() {
        let text = |takeover: &str| {
            format!("[process]\ntakeover = \"{takeover}\"\n[[listener]]\nunix = \"/run/smcached/s.sock\"\n")
        };
        for (takeover, is_right) in [
            ("/run/smcached-takeover/socket", true),
            ("/run/smcached/t", false),
            ("/run/smcached/t/t", false),
        ] {
            let errors = errors(&text(takeover));
            assert_eq!(errors.is_empty(), is_right, "{takeover}: {errors:?}");
        }
        assert!(errors("[process]\nafter_takeover = \"wait\"")[0].contains("only with takeover"));
    }

    #[test]
    fn the_example_of_the_design_is_read() {
        let text = r#"
            [source]
            kind = "file"
            path = "config/local-secrets.toml"
            [cache]
            ttl = "1m"
            preload = ["arn:aws:secretsmanager:us-west-2:123456789012:secret:/MySecret-AbCdEf", "team-a/db"]
            unlisted_groups = "deny"
            [[listener]]
            unix = "/run/smcached/smcached.sock"
            mode = "0660"
            group = "flyte"
            allow_uids = [1000]
            allow_secrets = ["arn:aws:secretsmanager:us-west-2:*:secret:team-a/*"]
            [[listener]]
            tcp = "127.0.0.1:2773"
            token_file = "/run/smcached/token"
            [ops]
            tcp = "off"
            [log]
            format = "text"
            level = "debug"
            [audit]
            output = "stdout"
            [groups.team-a]
            prefix = "prod/team-a/"
            region = "us-east-1"
            role_arn = "arn:aws:iam::123456789012:role/reader"
            ttl = "1m"
        "#;
        let config = Config::parse("t.toml", text).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.cache.ttl, Duration::from_mins(1));
        assert_eq!(config.cache.unlisted_groups, Unlisted::Deny);
        assert_eq!(config.ops.tcp, None);
        assert_eq!(config.audit.output, AuditOutput::Stdout);
        assert_eq!(config.groups["team-a"].prefix, "prod/team-a/");
        let Bind::Unix { mode, ref group, ref allow_uids, .. } = config.listeners[0].bind else { panic!() };
        assert_eq!((mode, group.as_deref(), &allow_uids[..]), (0o660, Some("flyte"), &[1000][..]));
    }

    #[test]
    fn each_wrong_value_is_refused_with_what_is_accepted() {
        let cases = [
            ("[cache]\nttl = 300", "t.toml:2:7: cache.ttl: got 300; accepted: a duration such as"),
            ("[cache]\nttl = \"0s\"", "above 0"),
            ("[cache]\nmax_bytes = \"64 MB\"", "cache.max_bytes: got \"64 MB\"; accepted: a size"),
            ("[cache]\nmax_bytes = 0", "accepted: a size"),
            ("[cache]\npreload = [\"a//b//c\"]", "cache.preload"),
            ("[cache]\nunlisted_groups = \"no\"", "accepted: \"allow\" or \"deny\""),
            (
                "[cache]\nrevalidate_timeout = \"5s\"",
                "cache: revalidate_timeout is longer than fetch_timeout",
            ),
            ("[aws]\nmax_attempts = 0", "accepted: a number from 1 to 10"),
            ("[aws]\nregion = \"US West\"", "accepted: a region"),
            ("[aws]\nendpoint_url = \"localhost:4566\"", "accepted: a URL"),
            ("[aws]\nrole_arn = \"reader\"", "accepted: the ARN of a role"),
            ("[aws]\nconnect_timeout = \"9s\"", "connect_timeout is longer than attempt_timeout"),
            ("[source]\nkind = \"vault\"", "accepted: \"aws\" or \"file\""),
            ("[source]\nkind = \"file\"", "source: kind = \"file\" needs a path"),
            ("[source]\npath = \"x\"", "only kind = \"file\" has a path"),
            ("[[listener]]\nmode = \"0660\"", "listener[0]: a listener needs one of unix and tcp"),
            ("[[listener]]\nunix = \"/x\"\nmode = \"999\"", "listener[0].mode: got \"999\"; accepted: octal"),
            ("[[listener]]\nunix = \"@abstract\"", "accepted: the path of a socket"),
            ("[[listener]]\nunix = \"/x\"\ntcp = \"127.0.0.1:1\"", "write two listeners"),
            ("[[listener]]\nunix = \"/x\"\ntoken = \"none\"", "only a tcp listener has this"),
            ("[[listener]]\ntcp = \"127.0.0.1:1\"\nmode = \"0660\"", "only a unix listener has this"),
            ("[[listener]]\ntcp = \"127.0.0.1:1\"\ntoken = \"sesame\"", "accepted: \"none\""),
            (
                "[[listener]]\ntcp = \"127.0.0.1:1\"\ntoken = \"none\"\ntoken_file = \"x\"",
                "also says token = \"none\"",
            ),
            ("[[listener]]\ntcp = \"0.0.0.0:1\"", "allow_non_loopback = true"),
            ("[[listener]]\ntcp = \"127.0.0.1:9273\"", "127.0.0.1:9273 is configured twice"),
            ("[[policy]]\nuids = [1]", "needs allow_secrets"),
            ("[[policy]]\nallow_secrets = []", "a list of patterns"),
            ("[[policy]]\nallow_secrets = [\"a b\"]", "a list of patterns"),
            ("[[policy]]\nuids = []\nallow_secrets = [\"*\"]", "of one at least"),
            (
                "[[policy]]\nlistener = \"unix:/x\"\nallow_secrets = [\"*\"]",
                "unix:/run/smcached/smcached.sock, tcp:127.0",
            ),
            (
                "[[policy]]\nlistener = \"tcp:127.0.0.1:2773\"\nuids = [1]\nallow_secrets = [\"*\"]",
                "nobody knows the user of a TCP connection",
            ),
            ("[server]\nmax_waiting = 0", "server.max_waiting"),
            ("[groups.a]\nprefix = \"a b\"", "groups.a.prefix"),
            ("[groups.a]\nttl = \"x\"", "groups.a.ttl"),
            ("[log]\nlevel = \"loud\"", "log.level"),
            (
                "[audit]\noutput = \"stdot\"",
                "audit.output: got \"stdot\"; accepted: \"off\", \"stdout\" or the path",
            ),
            ("[audit]\noutput = \"/\"", "audit.output"),
            ("[audit]\noutput = true", "audit.output"),
            (
                "[audit]\nmax_bytes = \"63KiB\"",
                "accepted: a size such as \"64MiB\", \"512KiB\" or \"1GB\", at least 64KiB",
            ),
            ("[audit]\nkeep = 0", "accepted: a number from 1 to 1000"),
            ("[audit]\nmode = 600", "audit.mode: got 600; accepted: octal permissions"),
            ("[audit]\nfile = \"/x\"", "audit.file: unknown key"),
            ("[reloading]\n", "reloading: unknown key"),
            ("reload = \"never\"", "accepted: \"signal\" or \"watch\""),
            ("[cache]\npreload_tags = [\"=x\"]", "cache.preload_tags"),
            (
                "[source]\nkind = \"file\"\npath = \"x\"\n[cache]\npreload_tags = [\"x\"]",
                "needs secrets that come from AWS",
            ),
            ("[groups.a]\nfallback_regions = [\"us-east-1\"]", "has no region of its own"),
            (
                "[groups.a]\nregion = \"us-west-2\"\nfallback_regions = [\"US East\"]",
                "groups.a.fallback_regions",
            ),
            ("[cache]\ntll = \"1m\"", "did you mean ttl?"),
            ("cache = 1", "cache: got 1; accepted: a table, [cache]"),
            ("listener = 1", "accepted: a list of tables, [[listener]]"),
            ("groups = 1", "accepted: a table, [groups]"),
            ("[cache", "not valid TOML"),
        ];
        for (text, expected) in cases {
            let errors = errors(text);
            assert!(errors.iter().any(|error| error.contains(expected)), "{text}: {errors:?}");
        }
    }

    #[test]
    fn what_may_be_a_secret_is_not_quoted() {
        let token = "[[listener]]\ntcp = \"127.0.0.1:1\"\ntoken = \"hunter2\"";
        let url = "[aws]\nendpoint_url = \"ftp://user:hunter2@x\"\nsts_endpoint_url = \"hunter2\"";
        for text in [token, url] {
            let errors = errors(text);
            assert!(
                !errors.is_empty() && errors.iter().all(|error| !error.contains("hunter2")),
                "{errors:?}"
            );
        }
    }

    #[test]
    fn all_errors_of_a_file_come_at_once_and_in_order() {
        let errors = errors("[cache]\nttl = 1\nidle_timeout = 2\n[log]\nlevel = 3\n[aws]\nx = 4\n");
        assert_eq!(errors.len(), 4, "{errors:?}");
        assert!(errors[0].starts_with("t.toml:2:") && errors[3].starts_with("t.toml:7:"), "{errors:?}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(\\[(cache|aws|log|ops|groups.x)\\]\n)?[a-z_]{0,12} ?= ?.{0,20}") {
            let _ = Config::parse("t.toml", &text);
        }
    }
}
