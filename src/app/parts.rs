//! From the configuration to the parts that it describes.

use std::sync::Arc;

use super::AppError;
use crate::access::{Gate, Patterns, Policy, Rule, TokenError, TokenFile, User, Verdict};
use crate::audit::{Audit, AuditError, FileOptions, Output};
use crate::cache::{CacheOptions, CallOptions, Lifetimes, Policies, Settings, Wanted};
use crate::config::{
    AuditOutput, Batch, Bind, Config, Environment, EnvironmentError, ListenerConfig, OnChange, PolicyConfig,
    ProjectConfig, ProjectedSecret, SourceConfig, TokenConfig,
};
use crate::hardening::{Identity, IdentityError};
use crate::lifecycle::Supervisor;
use crate::metrics::Metrics;
use crate::net::Ownership;
use crate::projection::{Hook, Project, ProjectedFile};
use crate::secret::{Field, Group, Origin, Resolver, SecretPath, VersionSelector};
use crate::server::Rules;
use crate::source::aws::{AwsOptions, AwsSource, IDENTITY_TIMEOUT};
use crate::source::file::FileSource;
use crate::source::{SecretSource, Tag};

pub(super) fn source(
    config: &Config,
    environment: &Environment,
    tasks: &mut Supervisor,
) -> Result<Arc<dyn SecretSource>, AppError> {
    match &config.source {
        SourceConfig::File { path } => {
            let source = Arc::new(FileSource::open(path)?);
            let watched = Arc::clone(&source);
            tasks.spawn("file source", async move { watched.run().await });
            Ok(source)
        }
        SourceConfig::Aws => Ok(Arc::new(aws_source(config, environment)?)),
    }
}

/// Secrets Manager, reached as configured.
pub fn aws_source(config: &Config, environment: &Environment) -> Result<AwsSource, EnvironmentError> {
    let aws = config.aws.clone();
    Ok(AwsSource::new(AwsOptions {
        region: aws.region,
        endpoint_url: aws.endpoint_url,
        sts_endpoint_url: aws.sts_endpoint_url,
        profile: aws.profile,
        role_arn: aws.role_arn,
        connect_timeout: aws.connect_timeout,
        attempt_timeout: aws.attempt_timeout,
        operation_timeout: call_options(config).call_timeout(),
        identity_timeout: config.cache.fetch_timeout.mul_f64(0.7).min(IDENTITY_TIMEOUT),
        ca_bundle: environment.ca_bundle()?,
        credential_files: environment.credential_files(),
    }))
}

/// Another user to go on as, if one is configured.
pub(super) fn identity(config: &Config) -> Result<Option<Identity>, IdentityError> {
    let resolve = |user: &str| Identity::resolve(user, config.process.group.as_deref());
    config.process.user.as_deref().map(resolve).transpose()
}

/// The audit trail, if there is to be one. Its file is for the user as whom the daemon goes on.
pub(super) fn audit(
    config: &Config,
    identity: Option<&Identity>,
    metrics: &Metrics,
) -> Result<Audit, AuditError> {
    let audit = &config.audit;
    let output = match &audit.output {
        AuditOutput::Off => return Ok(Audit::off()),
        AuditOutput::Stdout => Output::Stdout,
        AuditOutput::File(path) => Output::File(FileOptions {
            path: path.clone(),
            max_bytes: audit.max_bytes,
            keep: audit.keep,
            mode: audit.mode,
            owner: identity.map(Identity::uid),
        }),
    };
    Audit::start(output, metrics.audit.clone())
}

/// What callers' names mean.
pub fn resolver(config: &Config) -> Resolver {
    let groups = config.groups.iter().map(|(name, group)| Group {
        name: name.as_str().into(),
        prefix: group.prefix.clone(),
        origin: Origin {
            region: group.region.as_deref().map(Into::into),
            role_arn: group.role_arn.as_deref().map(Into::into),
        },
        ttl: group.ttl,
        fallback_regions: group.fallback_regions.iter().map(|region| region.as_str().into()).collect(),
    });
    Resolver::new(groups, config.cache.unlisted_groups)
}

/// What is listed under `preload` and `preload_tags`. The configuration has checked the form; what the groups make
/// of it may still be refused, and is said.
pub(super) fn wanted(config: &Config, resolver: &Resolver) -> Wanted {
    let resolve = |raw: &String| {
        let path = SecretPath::parse(raw)?;
        resolver.resolve(path, VersionSelector::current())
    };
    let keys = config.cache.preload.iter().filter_map(|raw| {
        resolve(raw).inspect_err(|error| tracing::warn!(secret = raw, %error, "cannot be preloaded")).ok()
    });
    Wanted {
        keys: keys.collect(),
        tags: config.cache.preload_tags.iter().map(|text| Tag::parse(text)).collect(),
    }
}

/// Who may come in by a listener, and read what. A token file that is `known` is not opened again.
pub(super) fn rules(
    config: &Config,
    listener: &ListenerConfig,
    region: Option<&str>,
    known: Option<&Arc<TokenFile>>,
) -> Result<Rules, TokenError> {
    let allow_secrets = &listener.allow_secrets;
    let policy = Policy {
        allow_secrets: (!allow_secrets.is_empty()).then(|| Patterns::new(allow_secrets)),
        ..policy(config, Some(&listener.label()), region)
    };
    let (token, allow_uids, allowed_hosts) = match &listener.bind {
        Bind::Unix { allow_uids, .. } => (None, allow_uids.clone(), None),
        Bind::Tcp { token, allowed_hosts, .. } => {
            let token = match token {
                TokenConfig::None => None,
                TokenConfig::File(path) => match known.filter(|known| known.path() == path) {
                    Some(known) => Some(Arc::clone(known)),
                    None => Some(Arc::new(TokenFile::open(path)?)),
                },
            };
            (token, Vec::new(), Some(allowed_hosts.clone()))
        }
    };
    let allow_roles = listener.allow_roles.clone();
    Ok(Rules::new(Gate { token, allow_uids, policy, allow_roles }, allowed_hosts))
}

/// The region of names that say none, as far as it is known before AWS is asked.
pub(super) fn default_region(config: &Config, environment: &Environment) -> Option<String> {
    config.aws.region.clone().or_else(|| environment.region().map(str::to_owned))
}

/// The rules that hold for a listener; without one, for what the daemon does by itself.
fn policy(config: &Config, listener: Option<&str>, region: Option<&str>) -> Policy {
    let holds = |rule: &&PolicyConfig| rule.listener.as_deref().is_none_or(|label| Some(label) == listener);
    let rule = |rule: &PolicyConfig| Rule {
        uids: rule.uids.clone(),
        gids: rule.gids.clone(),
        allow_secrets: Patterns::new(&rule.allow_secrets),
    };
    let rules =
        (!config.policies.is_empty()).then(|| config.policies.iter().filter(holds).map(rule).collect());
    // The secrets of a file are in whatever region their ARNs say.
    let is_aws = matches!(config.source, SourceConfig::Aws);
    let default_region = region.filter(|_| is_aws).map(str::to_owned);
    Policy { allow_secrets: None, rules, default_region }
}

/// The directories of files. An owner who does not exist is an error, since the configuration can mend it; so is one who
/// may not read what would be written for it. Files that are given to nobody belong to `identity`, if the process is to go
/// on as another user.
pub(super) fn projects(
    config: &Config,
    resolver: &Resolver,
    region: Option<&str>,
    identity: Option<&Identity>,
) -> Result<Vec<Project>, AppError> {
    let policy = policy(config, None, region);
    let file = |project: &ProjectConfig, user: User, file: &ProjectedSecret| {
        let key = SecretPath::parse(&file.secret).and_then(|path| resolver.resolve(path, file.selector()));
        let key = match key {
            Ok(key) => key,
            Err(error) => {
                tracing::warn!(secret = file.secret, %error, "cannot be written to a file");
                return Ok(None);
            }
        };
        let how = match policy.verdict(Some(user), &key) {
            Verdict::Yes => {
                let field = file.field.as_deref().and_then(Field::parse);
                return Ok(Some(ProjectedFile { target: file.target.clone().into(), key, field }));
            }
            Verdict::No => "no [[policy]] allows it",
            Verdict::Depends => {
                "the [[policy]] that may allow it names an ARN of which only a part is known; write the ARN here too"
            }
        };
        let (dir, secret) = (project.dir.clone(), file.secret.clone());
        Err(AppError::Policy { dir, secret, uid: user.uid, gid: user.gid, how })
    };
    let project = |project: &ProjectConfig| {
        let hook = project.on_change.as_ref().map(|on_change| match on_change {
            OnChange::Command(words) => Hook::Command(words.clone()),
            OnChange::Signal { signal, pid_file } => {
                Hook::Signal { name: signal, pid_file: pid_file.clone() }
            }
        });
        let owner = Ownership::resolve(project.mode, project.owner.as_deref(), project.group.as_deref())?;
        let (uid, gid) = owner.effective(identity.map(|identity| (identity.uid(), identity.gid())));
        let files = project.secrets.iter().map(|wanted| file(project, User { uid, gid }, wanted));
        let files: Vec<Option<ProjectedFile>> = files.collect::<Result<_, AppError>>()?;
        Ok(Project {
            dir: project.dir.clone(),
            files: files.into_iter().flatten().collect(),
            owner,
            together: project.together,
            hook,
        })
    };
    config.projects.iter().map(project).collect()
}

fn cache_options(config: &Config) -> CacheOptions {
    let cache = &config.cache;
    CacheOptions {
        lifetimes: Lifetimes {
            ttl: cache.ttl,
            stale_while_revalidate: cache.stale_while_revalidate,
            stale_if_error: cache.stale_if_error,
        },
        negative_ttl: cache.negative_ttl,
        idle_timeout: cache.idle_timeout,
        fetch_timeout: cache.fetch_timeout,
        revalidate_timeout: cache.revalidate_timeout,
        max_bytes: cache.max_bytes,
    }
}

fn call_options(config: &Config) -> CallOptions {
    CallOptions {
        fetch_timeout: config.cache.fetch_timeout,
        max_attempts: config.aws.max_attempts,
        max_concurrency: config.refresh.max_concurrency,
        rate: config.refresh.rate,
        rate_per_caller: config.refresh.rate_per_caller,
        batch: config.refresh.batch == Batch::Auto,
    }
}

pub(super) fn settings(config: &Config, resolver: Arc<Resolver>, metrics: &Metrics) -> Settings {
    let options = cache_options(config);
    let policies = Policies::new(resolver, options.lifetimes, &metrics.cache);
    Settings { options, calls: call_options(config), policies }
}
