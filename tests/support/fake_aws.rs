//! A Secrets Manager in this process: AWS's exact shapes, every call counted, every fault on command. The
//! oracle of the tests; moto is the second opinion.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::ARN;

/// What may go wrong with every answer, until told otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// 400 `ThrottlingException`.
    Throttle400,
    /// 429 without a code.
    Throttle429,
    /// 500 `InternalServiceError`.
    Http500,
    /// A bare 503.
    Http503,
    /// No answer, the connection stays open.
    Hang,
    /// The connection is reset before the answer.
    ResetBefore,
    /// The connection is reset in the middle of the answer.
    ResetMiddle,
    /// 200 with half a JSON document.
    Garble,
    /// 200 with `{}`.
    EmptyObject,
    /// 403 with HTML, as of a proxy.
    Html403,
    /// The answer for another secret.
    WrongSecret,
    /// 400 `ExpiredTokenException`.
    ExpiredToken,
}

/// The fake. Stops when dropped.
pub struct FakeAws {
    port: u16,
    state: Arc<Mutex<State>>,
    server: Mutex<Option<JoinSet<()>>>,
}

#[derive(Default)]
struct State {
    secrets: HashMap<String, Secret>,
    fault: Option<Fault>,
    latency: Duration,
    /// Action and secret id of every call.
    calls: Vec<(String, String)>,
}

#[derive(Clone)]
struct Secret {
    name: String,
    /// Oldest first.
    versions: Vec<Version>,
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
        let fake = Self { port: super::free_port(), state: Arc::default(), server: Mutex::default() };
        fake.listen();
        fake
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Stores a value as a new secret, or as the new `AWSCURRENT` of one that exists; returns the
    /// version id. The one before becomes `AWSPREVIOUS`, older ones lose their labels.
    pub fn put(&self, name: &str, value: impl Into<Stored>) -> String {
        let mut state = self.lock();
        let secret = state.secrets.entry(name.to_owned()).or_insert_with(|| Secret {
            name: name.to_owned(),
            versions: Vec::new(),
            is_deleted: false,
            is_denied: false,
        });
        for version in &mut secret.versions {
            version.stages = if version.stages == ["AWSCURRENT"] { vec!["AWSPREVIOUS"] } else { Vec::new() };
        }
        let id = format!("00000000-0000-4000-8000-{:012}", secret.versions.len() + 1);
        secret.versions.push(Version { id: id.clone(), stages: vec!["AWSCURRENT"], value: value.into() });
        id
    }

    /// Marks a secret for deletion.
    pub fn delete(&self, name: &str) {
        self.lock().secrets.get_mut(name).unwrap().is_deleted = true;
    }

    /// Denies, or allows again, access to a secret.
    pub fn deny(&self, name: &str, is_denied: bool) {
        self.lock().secrets.get_mut(name).unwrap().is_denied = is_denied;
    }

    /// Has every answer from now on go wrong in this way, or right.
    pub fn fail(&self, fault: Option<Fault>) {
        self.lock().fault = fault;
    }

    /// How long every answer takes from now on.
    pub fn set_latency(&self, latency: Duration) {
        self.lock().latency = latency;
    }

    /// How many calls there were.
    pub fn calls(&self) -> usize {
        self.lock().calls.len()
    }

    /// Every action that was called.
    pub fn actions(&self) -> Vec<String> {
        let mut actions: Vec<String> = self.lock().calls.iter().map(|(action, _)| action.clone()).collect();
        actions.sort();
        actions.dedup();
        actions
    }

    /// Stops listening and breaks all connections: from now on they are refused.
    pub fn refuse(&self) {
        *self.server.lock().unwrap() = None;
    }

    /// Listens again, on the same port.
    pub fn listen(&self) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, 1], self.port))).unwrap();
        let listener = socket.listen(4096).unwrap();
        let state = Arc::clone(&self.state);
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&state)));
            }
        });
        *self.server.lock().unwrap() = Some(server);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// Answers the requests of one connection.
async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>) {
    stream.set_nodelay(true).unwrap();
    let mut read = Vec::new();
    while let Some((action, body)) = next_request(&mut stream, &mut read).await {
        let (latency, fault, (status, answer)) = {
            let mut state = state.lock().unwrap();
            let id = body["SecretId"].as_str().unwrap_or_default().to_owned();
            state.calls.push((action.clone(), id));
            (state.latency, state.fault, state.answer(&action, &body))
        };
        sleep(latency).await;
        let (status, content_type, answer) = match fault {
            None => (status, "application/x-amz-json-1.1", answer.to_string()),
            Some(Fault::Hang) => return std::future::pending().await,
            Some(Fault::ResetBefore) => return drop(stream.set_zero_linger()),
            Some(Fault::ResetMiddle) => {
                let half = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{{\"ARN\":",
                    answer.to_string().len()
                );
                let _ = stream.write_all(half.as_bytes()).await;
                return drop(stream.set_zero_linger());
            }
            Some(fault) => faulty(fault, &answer),
        };
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\
             x-amzn-RequestId: 00000000-0000-4000-8000-000000000000\r\n\r\n",
            answer.len()
        );
        if stream.write_all(&[head.as_bytes(), answer.as_bytes()].concat()).await.is_err() {
            return;
        }
    }
}

fn faulty(fault: Fault, answer: &Value) -> (u16, &'static str, String) {
    const AWS_JSON: &str = "application/x-amz-json-1.1";
    let error = |code: &str| error(code, "x").1.to_string();
    match fault {
        Fault::Throttle400 => (400, AWS_JSON, error("ThrottlingException")),
        Fault::Throttle429 => (429, AWS_JSON, String::new()),
        Fault::Http500 => (500, AWS_JSON, error("InternalServiceError")),
        Fault::Http503 => (503, AWS_JSON, String::new()),
        Fault::ExpiredToken => (400, AWS_JSON, error("ExpiredTokenException")),
        Fault::EmptyObject => (200, AWS_JSON, "{}".to_owned()),
        Fault::Html403 => (403, "text/html", "<html>Forbidden</html>".to_owned()),
        Fault::Garble => {
            let whole = answer.to_string();
            (200, AWS_JSON, whole[..whole.len() / 2].to_owned())
        }
        Fault::WrongSecret => {
            let mut wrong = answer.clone();
            wrong["Name"] = json!("another");
            wrong["ARN"] = json!(format!("{ARN}another-ZzZzZz"));
            (200, AWS_JSON, wrong.to_string())
        }
        Fault::Hang | Fault::ResetBefore | Fault::ResetMiddle => unreachable!("these send no answer"),
    }
}

async fn next_request(stream: &mut TcpStream, read: &mut Vec<u8>) -> Option<(String, Value)> {
    let mut chunk = vec![0; 8 << 10];
    loop {
        if let Some(at) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&read[..at]).into_owned();
            let header = |wanted: &str| {
                let line = head.lines().find_map(|line| {
                    line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case(wanted))
                });
                line.map_or(String::new(), |(_, value)| value.to_owned())
            };
            let length: usize = header("content-length").parse().unwrap_or(0);
            if read.len() >= at + 4 + length {
                let body = serde_json::from_slice(&read[at + 4..at + 4 + length]).unwrap_or(Value::Null);
                read.drain(..at + 4 + length);
                let target = header("x-amz-target");
                let action = target.strip_prefix("secretsmanager.").unwrap_or("unknown");
                return Some((action.to_owned(), body));
            }
        }
        match stream.read(&mut chunk).await {
            Ok(count) if count > 0 => read.extend_from_slice(&chunk[..count]),
            _ => return None,
        }
    }
}

fn error(code: &str, message: &str) -> (u16, Value) {
    (400, json!({ "__type": code, "Message": message }))
}

impl State {
    fn answer(&self, action: &str, body: &Value) -> (u16, Value) {
        match action {
            "GetSecretValue" => {
                let id = body["SecretId"].as_str().unwrap_or_default();
                self.get(id, body["VersionId"].as_str(), body["VersionStage"].as_str())
            }
            "BatchGetSecretValue" => self.batch(body),
            _ => error("AccessDeniedException", "User is not authorized to perform this action"),
        }
    }

    fn get(&self, id: &str, version_id: Option<&str>, stage: Option<&str>) -> (u16, Value) {
        let missing =
            || error("ResourceNotFoundException", "Secrets Manager can't find the specified secret.");
        let Some(secret) = self.find(id) else { return missing() };
        if secret.is_denied {
            return error("AccessDeniedException", "User: arn:aws:sts::123456789012:x is not authorized");
        }
        if secret.is_deleted {
            let message =
                "You can't perform this operation on the secret because it was marked for deletion.";
            return error("InvalidRequestException", message);
        }
        let stage = stage.or(if version_id.is_none() { Some("AWSCURRENT") } else { None });
        let version = secret.versions.iter().find(|version| {
            version_id.is_none_or(|id| version.id == id)
                && stage.is_none_or(|stage| version.stages.contains(&stage))
        });
        let Some(version) = version else { return missing() };
        let mut answer = json!({
            "ARN": secret.arn(),
            "Name": secret.name,
            "VersionId": version.id,
            "VersionStages": version.stages,
            "CreatedDate": 1_523_477_145.713,
        });
        match &version.value {
            Stored::Text(text) => answer["SecretString"] = json!(text),
            Stored::Binary(bytes) => answer["SecretBinary"] = json!(STANDARD.encode(bytes)),
        }
        (200, answer)
    }

    fn batch(&self, body: &Value) -> (u16, Value) {
        let ids: Vec<&str> =
            body["SecretIdList"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if ids.is_empty() || ids.len() > 20 {
            return error("InvalidParameterException", "SecretIdList must have 1 to 20 ids");
        }
        let (mut values, mut errors) = (Vec::new(), Vec::new());
        for id in ids {
            match self.get(id, None, None) {
                (200, value) => values.push(value),
                (_, refusal) => errors.push(json!({
                    "SecretId": id, "ErrorCode": refusal["__type"], "Message": refusal["Message"],
                })),
            }
        }
        (200, json!({ "SecretValues": values, "Errors": errors }))
    }

    /// By name, complete ARN, or ARN without its six characters.
    fn find(&self, id: &str) -> Option<&Secret> {
        self.secrets.values().find(|secret| {
            let arn = secret.arn();
            id == secret.name || id == arn || id == &arn[..arn.len() - 7]
        })
    }
}

impl Secret {
    fn arn(&self) -> String {
        format!("{ARN}{}-AbCdEf", self.name)
    }
}
