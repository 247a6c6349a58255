//! A Secrets Manager in this process: AWS's exact shapes, every call counted, every fault on command. The
//! oracle of the tests; moto is the second opinion.

use std::collections::{BTreeMap, HashSet};
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::ARN;
use super::faults::{Request, Server, error};
use super::leaks;

/// The fake. Stops when dropped.
pub struct FakeAws {
    server: Server,
    state: Arc<Mutex<State>>,
}

impl Deref for FakeAws {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

#[derive(Default)]
struct State {
    secrets: BTreeMap<String, Secret>,
    denied_actions: HashSet<String>,
    /// The most secrets of one page.
    page: Option<usize>,
}

#[derive(Clone)]
struct Secret {
    name: String,
    /// Oldest first.
    versions: Vec<Version>,
    tags: Vec<(String, String)>,
    is_deleted: bool,
    is_denied: bool,
}

#[derive(Clone)]
struct Version {
    id: String,
    stages: Vec<&'static str>,
    value: Stored,
}

/// A secret's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    Text(String),
    Binary(Vec<u8>),
}

impl From<&str> for Stored {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl FakeAws {
    /// Starts on a free port of loopback.
    pub fn start() -> Self {
        let state: Arc<Mutex<State>> = Arc::default();
        let answering = Arc::clone(&state);
        let server =
            Server::start(move |request| std::future::ready(answering.lock().unwrap().answer(&request)));
        Self { server, state }
    }

    /// With what clients come upon: `db` with a version before the current one, the binary `team-a/key`, `gone`, which is
    /// marked for deletion, and `denied`.
    pub fn with_secrets_of_every_kind() -> Self {
        let aws = Self::start();
        aws.put("db", "old");
        aws.put("db", "new");
        aws.put("team-a/key", Stored::Binary(vec![0, 1, 255]));
        aws.put("gone", "x");
        aws.delete("gone");
        aws.put("denied", "x");
        aws.deny("denied", true);
        aws
    }

    /// Stores a value as a new secret, or as the new `AWSCURRENT` of one that exists; returns the
    /// version id. The one before becomes `AWSPREVIOUS`, older ones lose their labels.
    pub fn put(&self, name: &str, value: impl Into<Stored>) -> String {
        let value = value.into();
        leaks::note(match &value {
            Stored::Text(text) => text.as_bytes(),
            Stored::Binary(bytes) => bytes,
        });
        self.lock().put(name, value)
    }

    /// Stores a value of several secrets at one moment, as [`FakeAws::put`] does of one.
    pub fn put_all(&self, names: &[&str], value: &str) {
        leaks::note(value.as_bytes());
        let mut state = self.lock();
        for name in names {
            state.put(name, value.into());
        }
    }

    /// Adds a tag to a secret.
    pub fn tag(&self, name: &str, key: &str, value: &str) {
        self.change(name, |secret| secret.tags.push((key.to_owned(), value.to_owned())));
    }

    /// Marks a secret for deletion.
    pub fn delete(&self, name: &str) {
        self.change(name, |secret| secret.is_deleted = true);
    }

    /// Takes a secret back that was marked for deletion.
    pub fn restore(&self, name: &str) {
        self.change(name, |secret| secret.is_deleted = false);
    }

    /// Denies, or allows again, access to a secret.
    pub fn deny(&self, name: &str, is_denied: bool) {
        self.change(name, |secret| secret.is_denied = is_denied);
    }

    /// Denies, or allows again, an action.
    pub fn deny_action(&self, action: &str, is_denied: bool) {
        let denied = &mut self.lock().denied_actions;
        if is_denied {
            denied.insert(action.to_owned())
        } else {
            denied.remove(action)
        };
    }

    /// Puts at most so many secrets on one page of an answer.
    pub fn set_page(&self, page: usize) {
        self.lock().page = Some(page);
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Secret)) {
        change(self.lock().secrets.get_mut(name).unwrap());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn put(&mut self, name: &str, value: Stored) -> String {
        let secret = self.secrets.entry(name.to_owned()).or_insert_with(|| Secret {
            name: name.to_owned(),
            versions: Vec::new(),
            tags: Vec::new(),
            is_deleted: false,
            is_denied: false,
        });
        for version in &mut secret.versions {
            version.stages = if version.stages == ["AWSCURRENT"] { vec!["AWSPREVIOUS"] } else { Vec::new() };
        }
        let id = format!("00000000-0000-4000-8000-{:012}", secret.versions.len() + 1);
        secret.versions.push(Version { id: id.clone(), stages: vec!["AWSCURRENT"], value });
        id
    }

    fn answer(&self, request: &Request) -> (u16, Value) {
        let (body, region) = (&request.body, request.region.as_str());
        match request.action.as_str() {
            action if self.denied_actions.contains(action) => denied(),
            "GetSecretValue" => {
                let id = body["SecretId"].as_str().unwrap_or_default();
                self.get(region, id, body["VersionId"].as_str(), body["VersionStage"].as_str())
            }
            "DescribeSecret" => self.describe(region, body["SecretId"].as_str().unwrap_or_default()),
            "BatchGetSecretValue" => self.batch(request),
            "ListSecrets" => self.list(request),
            _ => denied(),
        }
    }

    fn get(&self, region: &str, id: &str, version_id: Option<&str>, stage: Option<&str>) -> (u16, Value) {
        let missing =
            || error("ResourceNotFoundException", "Secrets Manager can't find the specified secret.");
        let Some(secret) = self.find(region, id) else { return missing() };
        if secret.is_denied {
            return denied();
        }
        if secret.is_deleted {
            let message =
                "You can't perform this operation on the secret because it was marked for deletion.";
            return error("InvalidRequestException", message);
        }
        let stage = stage.or(if version_id.is_none() { Some("AWSCURRENT") } else { None });
        let version = secret.versions.iter().enumerate().find(|(_, version)| {
            version_id.is_none_or(|id| version.id == id)
                && stage.is_none_or(|stage| version.stages.contains(&stage))
        });
        let Some((index, version)) = version else { return missing() };
        let mut answer = json!({
            "ARN": secret.arn(region),
            "Name": secret.name,
            "VersionId": version.id,
            "VersionStages": version.stages,
            "CreatedDate": 1_523_477_145.5 + f64::from(u32::try_from(index).unwrap()),
        });
        match &version.value {
            Stored::Text(text) => answer["SecretString"] = json!(text),
            Stored::Binary(bytes) => answer["SecretBinary"] = json!(STANDARD.encode(bytes)),
        }
        (200, answer)
    }

    /// Also of a secret that is marked for deletion, as AWS does.
    fn describe(&self, region: &str, id: &str) -> (u16, Value) {
        let Some(secret) = self.find(region, id) else {
            return error("ResourceNotFoundException", "Secrets Manager can't find the specified secret.");
        };
        if secret.is_denied {
            return denied();
        }
        let labelled = secret.versions.iter().filter(|version| !version.stages.is_empty());
        let stages: serde_json::Map<String, Value> =
            labelled.map(|version| (version.id.clone(), json!(version.stages))).collect();
        let tags = secret.tags.iter().map(|(key, value)| json!({ "Key": key, "Value": value }));
        let mut answer = json!({
            "ARN": secret.arn(region),
            "Name": secret.name,
            "Description": "for tests",
            "RotationEnabled": false,
            "LastChangedDate": 1_523_477_145.729,
            "CreatedDate": 1_523_477_145.5,
            "Tags": tags.collect::<Vec<_>>(),
            "VersionIdsToStages": stages,
        });
        if secret.is_deleted {
            answer["DeletedDate"] = json!(1_523_477_146.5);
        }
        (200, answer)
    }

    fn batch(&self, request: &Request) -> (u16, Value) {
        let ids = request.ids();
        if ids.is_empty() || ids.len() > 20 {
            return error("InvalidParameterException", "SecretIdList must have 1 to 20 ids");
        }
        let (mut values, mut errors) = (Vec::new(), Vec::new());
        let (page, next_token) = self.page(&request.body, &ids);
        for id in page {
            match self.get(&request.region, id, None, None) {
                (200, value) => values.push(value),
                (_, refusal) => errors.push(json!({
                    "SecretId": id, "ErrorCode": refusal["__type"], "Message": refusal["Message"],
                })),
            }
        }
        // AWS keeps no order.
        values.reverse();
        (200, json!({ "SecretValues": values, "Errors": errors, "NextToken": next_token }))
    }

    /// By `tag-key` and `tag-value`, which match beginnings, all filters at once.
    fn list(&self, request: &Request) -> (u16, Value) {
        let filters = request.body["Filters"].as_array().cloned().unwrap_or_default();
        let is_listed = |secret: &&Secret| {
            !secret.is_deleted
                && filters.iter().all(|filter| {
                    let of_tag = |(key, value): &(String, String)| match filter["Key"].as_str() {
                        Some("tag-key") => key.clone(),
                        Some("tag-value") => value.clone(),
                        other => panic!("a filter that the fake does not know: {other:?}"),
                    };
                    let wanted = filter["Values"].as_array().into_iter().flatten().filter_map(Value::as_str);
                    let tags: Vec<String> = secret.tags.iter().map(of_tag).collect();
                    wanted.into_iter().any(|wanted| tags.iter().any(|tag| tag.starts_with(wanted)))
                })
        };
        let found: Vec<&Secret> = self.secrets.values().filter(is_listed).collect();
        let (page, next_token) = self.page(&request.body, &found);
        let entry = |secret: &&Secret| {
            let tags = secret.tags.iter().map(|(key, value)| json!({ "Key": key, "Value": value }));
            json!({
                "ARN": secret.arn(&request.region), "Name": secret.name, "Tags": tags.collect::<Vec<_>>(),
            })
        };
        let entries: Vec<_> = page.iter().map(entry).collect();
        (200, json!({ "SecretList": entries, "NextToken": next_token }))
    }

    /// The items of the page that is asked for, and the token of the next.
    fn page<'a, T>(&self, body: &Value, items: &'a [T]) -> (&'a [T], Value) {
        let from: usize = body["NextToken"].as_str().map_or(0, |token| token.parse().unwrap());
        let to = items.len().min(from + self.page.unwrap_or(items.len()));
        let next_token = if to < items.len() { json!(to.to_string()) } else { Value::Null };
        (&items[from..to], next_token)
    }

    /// By name, complete ARN, or ARN without its six characters.
    fn find(&self, region: &str, id: &str) -> Option<&Secret> {
        if !id.starts_with("arn:") {
            return self.secrets.get(id);
        }
        let name = id.strip_prefix(&arn_of(region, ""))?;
        let complete = name.strip_suffix(RANDOM).and_then(|name| self.secrets.get(name));
        complete.or_else(|| self.secrets.get(name))
    }
}

impl Secret {
    fn arn(&self, region: &str) -> String {
        arn_of(region, &self.name) + RANDOM
    }
}

/// What AWS puts at the end of an ARN, though not the same everywhere.
const RANDOM: &str = "-AbCdEf";

/// An ARN without its random characters.
fn arn_of(region: &str, name: &str) -> String {
    let region = if region.is_empty() { "us-west-2" } else { region };
    format!("{}{name}", ARN.replace("us-west-2", region))
}

fn denied() -> (u16, Value) {
    error("AccessDeniedException", "User: arn:aws:sts::123456789012:x is not authorized")
}
