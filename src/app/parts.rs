//! From the configuration to the parts that it describes.

use std::sync::Arc;

use super::AppError;
use crate::access::{Gate, Patterns, TokenError, TokenFile};
use crate::cache::{CacheOptions, CallOptions, Lifetimes, Policies, Settings, Wanted};
use crate::config::{
    Batch, Bind, Config, Environment, ListenerConfig, OnChange, ProjectConfig, ProjectedSecret, SourceConfig,
    TokenConfig,
};
use crate::lifecycle::Supervisor;
use crate::metrics::Metrics;
use crate::net::{Ownership, UnknownOwner};
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
        SourceConfig::Aws => {
            let aws = config.aws.clone();
            let options = AwsOptions {
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
            };
            Ok(Arc::new(AwsSource::new(options)))
        }
    }
}

pub(super) fn resolver(config: &Config) -> Resolver {
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

/// Who may come in by a listener. A token file that is `known` is not opened again.
pub(super) fn rules(config: &ListenerConfig, known: Option<&Arc<TokenFile>>) -> Result<Rules, TokenError> {
    let allow_secrets = (!config.allow_secrets.is_empty()).then(|| Patterns::new(&config.allow_secrets));
    let (token, allow_uids, allowed_hosts) = match &config.bind {
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
    let allow_roles = config.allow_roles.clone();
    Ok(Rules::new(Gate { token, allow_uids, allow_secrets, allow_roles }, allowed_hosts))
}

/// The directories of files. An owner who does not exist is an error, since the configuration can mend it.
pub(super) fn projects(config: &Config, resolver: &Resolver) -> Result<Vec<Project>, UnknownOwner> {
    let file = |file: &ProjectedSecret| {
        let key = SecretPath::parse(&file.secret).and_then(|path| resolver.resolve(path, file.selector()));
        let key = key
            .inspect_err(|error| tracing::warn!(secret = file.secret, %error, "cannot be written to a file"));
        let field = file.field.as_deref().and_then(Field::parse);
        Some(ProjectedFile { target: file.target.clone().into(), key: key.ok()?, field })
    };
    let project = |project: &ProjectConfig| {
        let hook = project.on_change.as_ref().map(|on_change| match on_change {
            OnChange::Command(words) => Hook::Command(words.clone()),
            OnChange::Signal { signal, pid_file } => {
                Hook::Signal { name: signal, pid_file: pid_file.clone() }
            }
        });
        Ok(Project {
            dir: project.dir.clone(),
            files: project.secrets.iter().filter_map(file).collect(),
            owner: Ownership::resolve(project.mode, project.owner.as_deref(), project.group.as_deref())?,
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
        batch: config.refresh.batch == Batch::Auto,
    }
}

pub(super) fn settings(config: &Config, resolver: Arc<Resolver>, metrics: &Metrics) -> Settings {
    let options = cache_options(config);
    let policies = Policies::new(resolver, options.lifetimes, &metrics.cache);
    Settings { options, calls: call_options(config), policies }
}
