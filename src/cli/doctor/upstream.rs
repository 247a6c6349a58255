//! What AWS says: are there credentials, does it accept them, what do they permit, and what time is it there.

use futures_util::future::join_all;

use super::Findings;
use crate::app;
use crate::config::{Batch, Config, Environment, SourceConfig};
use crate::secret::{Origin, SecretId, SecretKey, SecretPath, VersionSelector};
use crate::source::aws::AwsSource;
use crate::source::file::FileSource;
use crate::source::{BatchError, SecretSource, SourceError, Tag};

/// So many calls at a time.
const AT_ONCE: usize = 8;

/// A name that nobody has: what AWS says of it says whether it accepts the credentials.
const NOBODYS: &str = "smcached-doctor/no-such-secret";

/// AWS refuses signatures that are five minutes off; a clock that is kept is never off by this many seconds.
const SKEW: i64 = 60;

const CREDENTIALS: &str = "credentials";
const PERMISSIONS: &str = "permissions";

pub(super) async fn examine(config: &Config, environment: &Environment, findings: &mut Findings) {
    let source = match &config.source {
        SourceConfig::File { path } => {
            match FileSource::open(path) {
                Ok(_) => findings.ok("source", format!("the file of secrets {} can be read", path.display())),
                Err(error) => {
                    findings.problem("source", error.to_string(), "correct the file, or source.path");
                }
            }
            return;
        }
        SourceConfig::Aws => match app::aws_source(config, environment) {
            Ok(source) => source,
            Err(error) => {
                return findings.problem(
                    CREDENTIALS,
                    error.to_string(),
                    "correct the variable that it names",
                );
            }
        },
    };
    if let Err(error) = source.probe().await {
        return findings.problem(CREDENTIALS, error.to_string(), mend_of(&error));
    }
    findings.ok(CREDENTIALS, "there are some");
    for (place, keys) in places(config, findings) {
        if keys.is_empty() {
            accepted(&source, place, findings).await;
        } else {
            permissions(&source, config, &keys, findings).await;
        }
    }
    for tag in &config.cache.preload_tags {
        tagged(&source, &Tag::parse(tag), findings).await;
    }
    clock(&source, findings);
}

/// The regions and roles that are configured, each with what is preloaded there.
fn places(config: &Config, findings: &mut Findings) -> Vec<(Origin, Vec<SecretKey>)> {
    let resolver = app::resolver(config);
    let mut places: Vec<(Origin, Vec<SecretKey>)> = Vec::new();
    let mut add =
        |place: Origin, key: Option<SecretKey>| match places.iter_mut().find(|(known, _)| *known == place) {
            Some((_, keys)) => keys.extend(key),
            None => places.push((place, key.into_iter().collect())),
        };
    for raw in &config.cache.preload {
        let key = SecretPath::parse(raw).and_then(|path| resolver.resolve(path, VersionSelector::current()));
        match key {
            Ok(key) => add(key.place(), Some(key)),
            Err(error) => {
                findings.problem(PERMISSIONS, format!("{raw}: {error}"), "correct it in cache.preload");
            }
        }
    }
    for group in resolver.groups().filter(|group| group.origin != Origin::default()) {
        add(group.origin.clone(), None);
    }
    if places.is_empty() {
        places.push((Origin::default(), Vec::new()));
    }
    places
}

fn name_of(place: &Origin) -> String {
    let region = place.region.as_deref().unwrap_or("the default region");
    place.role_arn.as_deref().map_or_else(|| region.to_owned(), |role| format!("{region}, as {role}"))
}

/// Where nothing is preloaded: does AWS take us for who we are?
async fn accepted(source: &AwsSource, place: Origin, findings: &mut Findings) {
    let name = name_of(&place);
    let Ok(id) = SecretId::parse(NOBODYS) else { return };
    let asked = source.fetch(&SecretKey { origin: place, id, selector: VersionSelector::current() }).await;
    match asked {
        Ok(_) | Err(SourceError::NotFound | SourceError::AccessDenied | SourceError::Deleted) => {
            findings.ok(CREDENTIALS, format!("AWS accepts them in {name}"));
            let mend = "list secrets under cache.preload to have them checked";
            findings.note(PERMISSIONS, format!("not checked in {name}: nothing is preloaded there"), mend);
        }
        Err(error) => findings.problem(CREDENTIALS, format!("in {name}: {error}"), mend_of(&error)),
    }
}

async fn permissions(source: &AwsSource, config: &Config, keys: &[SecretKey], findings: &mut Findings) {
    let place = name_of(&keys.first().map(SecretKey::place).unwrap_or_default());
    let asked = ask(source, keys.iter().cloned()).await;
    let granted = asked.iter().filter(|(_, outcome)| outcome.is_ok()).count();
    if granted > 0 {
        let all = keys.len();
        let message = format!("GetSecretValue works for {granted} of {all} preloaded secrets in {place}");
        findings.ok(PERMISSIONS, message);
    }
    for (key, error) in asked.iter().filter_map(|(key, outcome)| Some((key, outcome.as_ref().err()?))) {
        findings.problem(
            PERMISSIONS,
            format!("GetSecretValue, {}: {error}", key.id.as_str()),
            mend_of(error),
        );
    }
    if granted == 0 {
        return;
    }
    if config.refresh.batch == Batch::Auto {
        batches(source, &keys[..keys.len().min(source.max_batch())], &place, findings).await;
    }
    let readable = asked.iter().filter(|(_, outcome)| outcome.is_ok()).map(|(key, _)| key.description());
    let described = ask(source, readable).await;
    let refused = described.iter().find_map(|(_, outcome)| outcome.as_ref().err());
    let denied = described.iter().filter(|(_, outcome)| outcome.is_err()).count();
    match refused {
        None => findings.ok(PERMISSIONS, format!("DescribeSecret works in {place}")),
        Some(SourceError::AccessDenied) => findings.note(
            PERMISSIONS,
            format!("DescribeSecret is denied for {denied} of {granted} secrets in {place}"),
            "grant secretsmanager:DescribeSecret if programs ask for descriptions; nothing else needs it",
        ),
        Some(error) => {
            findings.problem(PERMISSIONS, format!("DescribeSecret in {place}: {error}"), mend_of(error));
        }
    }
}

async fn batches(source: &AwsSource, keys: &[SecretKey], place: &str, findings: &mut Findings) {
    match source.fetch_batch(keys).await {
        Ok(_) => findings.ok(PERMISSIONS, format!("BatchGetSecretValue works in {place}")),
        Err(BatchError::Unsupported) => findings.note(
            PERMISSIONS,
            format!("BatchGetSecretValue is denied or not known in {place}"),
            "grant secretsmanager:BatchGetSecretValue to make up to 20 times fewer calls, or set refresh.batch \
             to \"off\"",
        ),
        Err(BatchError::Failed(error)) => {
            findings.problem(PERMISSIONS, format!("BatchGetSecretValue in {place}: {error}"), mend_of(&error));
        }
    }
}

/// Asks for them, a few at a time, and no further once that is in vain. No value is kept.
async fn ask(
    source: &AwsSource,
    keys: impl Iterator<Item = SecretKey>,
) -> Vec<(SecretKey, Result<(), SourceError>)> {
    let keys: Vec<SecretKey> = keys.collect();
    let mut asked = Vec::new();
    for keys in keys.chunks(AT_ONCE) {
        let outcomes = join_all(keys.iter().map(|key| source.fetch(key))).await;
        let is_in_vain = |error: &SourceError| {
            error.is_about_the_endpoint() || matches!(error, SourceError::Throttled { .. })
        };
        let fail = outcomes
            .iter()
            .find_map(|outcome| outcome.as_ref().err().filter(|error| is_in_vain(error)).cloned());
        asked.extend(keys.iter().cloned().zip(outcomes.into_iter().map(|outcome| outcome.map(drop))));
        if let Some(error) = fail {
            // Once is enough of what would be said of all.
            let mut is_first = true;
            asked.retain(|(_, outcome)| outcome.as_ref() != Err(&error) || std::mem::take(&mut is_first));
            break;
        }
    }
    asked
}

async fn tagged(source: &AwsSource, tag: &Tag, findings: &mut Findings) {
    match source.list(tag, None).await {
        Ok(page) if page.ids.is_empty() => {
            let mend = "tag the secrets, or correct cache.preload_tags";
            findings.note(PERMISSIONS, format!("ListSecrets works; no secret has the tag {tag}"), mend);
        }
        Ok(_) => findings.ok(PERMISSIONS, format!("ListSecrets works; secrets have the tag {tag}")),
        Err(SourceError::AccessDenied) => {
            let mend = "grant secretsmanager:ListSecrets, which cache.preload_tags needs";
            findings.problem(PERMISSIONS, format!("ListSecrets is denied, for the tag {tag}"), mend);
        }
        Err(error) => findings.problem(PERMISSIONS, format!("ListSecrets: {error}"), mend_of(&error)),
    }
}

fn clock(source: &AwsSource, findings: &mut Findings) {
    const CHECK: &str = "clock";
    match source.clock_ahead() {
        None => {
            let mend = "mend what keeps AWS from answering, or look at `chronyc tracking` or `timedatectl`";
            findings.note(CHECK, "not checked: no answer of AWS says what time it is there", mend);
        }
        Some(ahead) if ahead.abs() < SKEW => findings.ok(CHECK, "as AWS's"),
        Some(ahead) => {
            let how = if ahead > 0 { "ahead of" } else { "behind" };
            let message =
                format!("{} s {how} AWS's, which refuses what is signed 300 s off", ahead.unsigned_abs());
            findings.problem(CHECK, message, "keep this host's time by NTP: chrony or systemd-timesyncd");
        }
    }
}

fn mend_of(error: &SourceError) -> &'static str {
    match error {
        SourceError::NotFound => "create it, or correct its name, region or group in cache.preload",
        SourceError::Deleted => "restore it, or take it out of cache.preload",
        SourceError::AccessDenied => {
            "grant secretsmanager:GetSecretValue on it, and kms:Decrypt on its key, to the daemon's role"
        }
        SourceError::InvalidRequest { .. } => "correct its name in cache.preload",
        SourceError::DecryptionFailure => "enable the KMS key, and grant kms:Decrypt on it",
        SourceError::NoIdentity { .. } => {
            "give the daemon an identity or region as said; if it has one, run this in its own environment"
        }
        SourceError::IdentityRejected { .. } => "renew the credentials; see what is said of the clock",
        SourceError::Throttled { .. } => "lower refresh.rate, raise cache.ttl, or ask AWS for a higher quota",
        SourceError::Upstream { .. } => "wait; AWS's health dashboard may say more",
        SourceError::Unreachable { .. } | SourceError::Timeout => {
            "check the network to AWS or aws.endpoint_url: routes, security groups, VPC endpoint, proxies, DNS"
        }
        SourceError::Unusable { .. } => {
            "check what is at aws.endpoint_url: a proxy may answer in the place of AWS"
        }
        SourceError::LocalLimit | SourceError::Aborted => "try again",
    }
}
