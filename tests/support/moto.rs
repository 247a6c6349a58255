//! moto: an independent implementation of the Secrets Manager API, pinned in `requirements.txt` and
//! installed by `tests/run`.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::client::{Address, Answer, Connection, aws_json};
use super::leaks;
use super::{eventually, free_port, in_repository};

const ENDING_WITH_ITS_INPUT: &str = "
import os, sys, threading
from moto.server import main
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
main(sys.argv[1:])
";

/// A running moto server. Killed when dropped.
pub struct Moto {
    process: Child,
    port: u16,
}

impl Moto {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With TLS, by this certificate and key.
    pub async fn start_tls(certificate: &Path, key: &Path) -> Self {
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        Self::start_with(&["--ssl-cert", &path(certificate), "--ssl-key", &path(key)]).await
    }

    async fn start_with(arguments: &[&str]) -> Self {
        let program = in_repository("target/python/bin/python");
        assert!(program.exists(), "{} is missing; tests/run installs it", program.display());
        let port = free_port();
        let process = Command::new(program)
            // Ends with this process, however that ends: then its standard input does.
            .args(["-c", ENDING_WITH_ITS_INPUT, "--host", "127.0.0.1", "--port", &port.to_string()])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let moto = Self { process, port };
        eventually("moto answers", Duration::from_mins(1), async || {
            Connection::open(&Address::Tcp(port)).await.is_ok()
        })
        .await;
        moto
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// One call of Secrets Manager, which must succeed.
    pub async fn call(&self, action: &str, body: Value) -> Value {
        if let Some(text) = body["SecretString"].as_str() {
            leaks::note(text.as_bytes());
        }
        if let Some(encoded) = body["SecretBinary"].as_str() {
            leaks::note(&STANDARD.decode(encoded).unwrap());
        }
        let mut answer = aws_json(self.port, action, &body).await;
        for _ in 0..3 {
            // Its own defect, under load, and not what is tested: AWS says so in JSON.
            if answer.status == 500 && answer.header("content-type").starts_with("text/html") {
                answer = aws_json(self.port, action, &body).await;
            }
        }
        assert_eq!(answer.status, 200, "{action}: {answer:?}");
        answer.json()
    }

    /// Creates a secret and returns its ARN.
    pub async fn create(&self, name: &str, value: &str) -> String {
        let created = self.call("CreateSecret", json!({ "Name": name, "SecretString": value })).await;
        created["ARN"].as_str().unwrap().to_owned()
    }

    /// Makes a user who may do this and nothing else, turns IAM checks on, and returns the user's keys.
    pub async fn only_allow(&self, action: &str) -> (String, String) {
        let policy = json!({
            "Version": "2012-10-17",
            "Statement": [{ "Effect": "Allow", "Action": action, "Resource": "*" }],
        });
        self.iam("Action=CreateUser&UserName=reader").await;
        let document =
            percent_encoding::utf8_percent_encode(&policy.to_string(), percent_encoding::NON_ALPHANUMERIC)
                .to_string();
        self.iam(&format!("Action=PutUserPolicy&UserName=reader&PolicyName=read&PolicyDocument={document}"))
            .await;
        let keys = self.iam("Action=CreateAccessKey&UserName=reader").await;
        let element = |name: &str| {
            let rest = keys.text().split_once(&format!("<{name}>")).unwrap().1;
            rest.split_once('<').unwrap().0.to_owned()
        };
        self.post("/moto-api/reset-auth", "text/plain", "", "0").await;
        (element("AccessKeyId"), element("SecretAccessKey"))
    }

    /// Turns IAM checks off again.
    pub async fn allow_all(&self) {
        self.post("/moto-api/reset-auth", "text/plain", "", "inf").await;
    }

    async fn iam(&self, form: &str) -> Answer {
        let credential = "AKIAIOSFODNN7EXAMPLE/20260101/us-east-1/iam/aws4_request";
        let authorization = format!(
            "Authorization: AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host, Signature=0\r\n"
        );
        let form = format!("{form}&Version=2010-05-08");
        self.post("/", "application/x-www-form-urlencoded", &authorization, &form).await
    }

    async fn post(&self, path: &str, content_type: &str, headers: &str, body: &str) -> Answer {
        let mut connection = Connection::open(&Address::Tcp(self.port)).await.unwrap();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: {content_type}\r\n{headers}\
             Content-Length: {}\r\n\r\n{body}",
            self.port,
            body.len()
        );
        connection.send(request.as_bytes()).await.unwrap();
        let answer = connection.answer(false).await.unwrap().unwrap();
        assert_eq!(answer.status, 200, "{path} {body}: {answer:?}");
        answer
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
