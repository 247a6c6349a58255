//! AWS Secrets Manager's own protocol, AWS JSON 1.1, as any AWS SDK speaks it: `GetSecretValue`, `BatchGetSecretValue`
//! by id list, and `DescribeSecret`. Nothing that writes
//! (<https://docs.aws.amazon.com/secretsmanager/latest/apireference/Welcome.html>).
//!
//! Signatures are not checked: the daemon has no secret key to check them by. The access key id is the token.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Body as HttpBody;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::cache_status::{failed, note_source};
use super::metadata::{DateForm, Metadata, render};
use crate::cache::{Answer, Demand, ReadError};
use crate::net::Body;
use crate::secret::{
    Origin, SecretDescription, SecretId, SecretKey, SecretVersion, VersionSelector, is_region,
};
use crate::server::Shared;
use crate::server::dialect::AWS_JSON;
use crate::server::guards::signing_region;
use crate::server::headers::rendered;
use crate::server::problem::Problem;
use crate::server::visit::Visit;
use crate::source::SourceError;

const TARGET: HeaderName = HeaderName::from_static("x-amz-target");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

/// Twenty ids of the longest kind fit in.
const MAX_BODY: usize = 64 << 10;

/// The longest that a body may take to arrive: it is sent at once, with the head.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The most ids of one batch, as in AWS.
const MAX_BATCH: usize = 20;

/// Gives an answer, be it an error, an id, as all of AWS's have; returns it.
pub(in crate::server) fn note_request_id(response: &mut Response<Body>) -> String {
    let (high, low) = (fastrand::u64(..), fastrand::u64(..));
    let hex = format!("{high:016x}{low:016x}");
    let id = format!("{}-{}-4{}-a{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..]);
    response.headers_mut().insert(REQUEST_ID, rendered(&id));
    id
}

/// Answers one request.
pub(in crate::server) async fn answer<B>(
    visit: &Visit<'_>,
    request: Request<B>,
) -> Result<Response<Body>, Problem>
where
    B: HttpBody<Error: std::error::Error + Send + Sync + 'static>,
{
    let (head, body) = request.into_parts();
    let operation = operation(&head.headers)?;
    let body = visit.activity().receiving(read_body(body)).await?;
    let api = Api { visit, region: region(visit.shared, &head.headers)? };
    match operation.as_str() {
        "GetSecretValue" => api.get_secret_value(parsed(&body)?).await,
        "DescribeSecret" => api.describe_secret(parsed(&body)?).await,
        "BatchGetSecretValue" => api.batch_get_secret_value(parsed(&body)?).await,
        other => Err(Problem::operation_not_allowed(other)),
    }
}

/// `secretsmanager.<Operation>`, the one header that AWS's servers go by.
fn operation(headers: &HeaderMap) -> Result<String, Problem> {
    let target = headers.get(TARGET).and_then(|target| target.to_str().ok());
    let operation = target.and_then(|target| target.strip_prefix("secretsmanager."));
    let is_word =
        |word: &&str| (1..=64).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_alphanumeric());
    operation.filter(is_word).map(str::to_owned).ok_or_else(Problem::unknown_operation)
}

/// The region that the caller's client is set to, where it is another than the daemon's own: there its names mean
/// other secrets.
fn region(shared: &Shared, headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let (Some(own), Some(signed)) = (shared.default_region.as_deref(), signing_region(headers)) else {
        return Ok(None);
    };
    if !is_region(signed) {
        return Err(invalid("the signature's credential scope names no region"));
    }
    Ok((signed != own).then(|| signed.to_owned()))
}

async fn read_body<B>(body: B) -> Result<Bytes, Problem>
where
    B: HttpBody<Error: std::error::Error + Send + Sync + 'static>,
{
    let reading = Limited::new(body, MAX_BODY).collect();
    match timeout(BODY_TIMEOUT, reading).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Problem::body_too_large(MAX_BODY)),
        Ok(Err(_)) | Err(_) => {
            Err(Problem::malformed_body("the body did not arrive whole and in time").closing())
        }
    }
}

/// What AWS does not know it ignores, and so is it here.
fn parsed<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    // Where, not what: the message of the parser may quote the body.
    serde_json::from_slice(body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        Problem::malformed_body(format!(
            "the body is not the JSON of this operation: see line {line}, column {column}"
        ))
    })
}

fn invalid(detail: &'static str) -> Problem {
    Problem::parameter("invalid_parameter", detail.to_owned())
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GetSecretValue {
    secret_id: Option<String>,
    version_id: Option<String>,
    version_stage: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeSecret {
    secret_id: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct BatchGetSecretValue {
    secret_id_list: Option<Vec<String>>,
    filters: Option<serde_json::Value>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Batch<'a> {
    secret_values: Vec<Metadata<'a>>,
    errors: Vec<BatchError>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct BatchError {
    secret_id: String,
    error_code: &'static str,
    message: Cow<'static, str>,
}

/// One request's way to the cache.
struct Api<'a> {
    visit: &'a Visit<'a>,
    region: Option<String>,
}

impl Api<'_> {
    async fn get_secret_value(&self, input: GetSecretValue) -> Result<Response<Body>, Problem> {
        let selector = VersionSelector::new(input.version_id.as_deref(), input.version_stage.as_deref())
            .map_err(|error| Problem::parameter("invalid_parameter", error.to_string()))?;
        let key = self.key(input.secret_id.as_deref(), selector)?;
        let answer = self.visit.read(&key, Demand::default()).await?;
        let body = Metadata::new(&answer.held.version, None, DateForm::Number).render();
        self.response(body, Some(&answer))
    }

    /// What AWS says, held as values are; where AWS denies that, what the versions that are held tell.
    async fn describe_secret(&self, input: DescribeSecret) -> Result<Response<Body>, Problem> {
        let current = self.key(input.secret_id.as_deref(), VersionSelector::current())?;
        let described = match self.visit.try_read(&current.description(), Demand::default()).await {
            Ok(Err(ReadError::Source { error: SourceError::AccessDenied, .. })) => {
                let answer = self.visit.read(&current, Demand::default()).await?;
                let previous = self.held_previous(&current).await;
                let versions: Vec<&SecretVersion> = [Some(&answer), previous.as_ref()]
                    .into_iter()
                    .flatten()
                    .map(|held| &*held.held.version)
                    .collect();
                // There is one at least.
                let description = SecretDescription::of_versions(&versions).unwrap_or_default();
                let body = description.into_version().value.expose().clone();
                return self.response(body, Some(&answer));
            }
            described => described.and_then(|answer| answer.map_err(failed)),
        };
        self.visit.note(&current, &described);
        let answer = described?;
        let body = answer.held.version.value.expose().clone();
        self.response(body, Some(&answer))
    }

    async fn batch_get_secret_value(&self, input: BatchGetSecretValue) -> Result<Response<Body>, Problem> {
        if input.filters.is_some_and(|filters| !filters.is_null()) {
            return Err(Problem::operation_not_allowed("BatchGetSecretValue by Filters"));
        }
        let ids = input.secret_id_list.unwrap_or_default();
        if ids.is_empty() || ids.len() > MAX_BATCH {
            return Err(invalid("SecretIdList must have 1 to 20 ids"));
        }
        let outcomes = join_all(ids.iter().map(|id| self.current_of(id))).await;
        let (mut answers, mut errors) = (Vec::new(), Vec::new());
        for (id, outcome) in ids.into_iter().zip(outcomes) {
            match outcome {
                Ok(answer) => answers.push(answer),
                Err(problem) => {
                    let (error_code, message) = problem.into_aws();
                    errors.push(BatchError { secret_id: id, error_code, message });
                }
            }
        }
        let secret_values: Vec<_> = answers
            .iter()
            .map(|answer| Metadata::new(&answer.held.version, None, DateForm::Number))
            .collect();
        let room = secret_values.iter().map(Metadata::room).sum::<usize>() + errors.len() * 4096 + 64;
        self.response(render(&Batch { secret_values, errors }, room), None)
    }

    /// One id of a batch.
    async fn current_of(&self, id: &str) -> Result<Answer, Problem> {
        let read = match self.key(Some(id), VersionSelector::current()) {
            Ok(key) => self.visit.read(&key, Demand::default()).await,
            Err(problem) => {
                self.visit.note_malformed(id, &problem);
                Err(problem)
            }
        };
        read.inspect_err(|problem| self.visit.note_rejection(problem))
    }

    /// The key that an id leads to.
    fn key(&self, id: Option<&str>, selector: VersionSelector) -> Result<SecretKey, Problem> {
        let id = id.filter(|id| !id.is_empty()).ok_or_else(|| invalid("SecretId must be given"))?;
        let origin = Origin { region: self.region.as_deref().map(Into::into), role_arn: None };
        Ok(self.visit.shared.resolving.load().resolver.resolve_id(SecretId::parse(id)?, origin, selector)?)
    }

    /// The version before the current one, if it is held: no call is made for it.
    async fn held_previous(&self, current: &SecretKey) -> Option<Answer> {
        let selector = VersionSelector::new(None, Some("AWSPREVIOUS")).ok()?;
        let key = SecretKey { selector, ..current.clone() };
        let demand = Demand { only_if_cached: true, ..Demand::default() };
        self.visit.try_read(&key, demand).await.ok()?.ok()
    }

    fn response(&self, body: Bytes, answer: Option<&Answer>) -> Result<Response<Body>, Problem> {
        let mut response = Response::new(Full::new(self.visit.counted(body)?));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(AWS_JSON));
        if let Some(answer) = answer {
            note_source(headers, answer);
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_named_by_its_target() {
        let of = |target: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(TARGET, HeaderValue::from_str(target).unwrap());
            operation(&headers).ok()
        };
        assert_eq!(of("secretsmanager.GetSecretValue").as_deref(), Some("GetSecretValue"));
        for target in ["", "GetSecretValue", "dynamodb.GetItem", "secretsmanager.", "secretsmanager.Get<b>"] {
            assert_eq!(of(target), None, "{target}");
        }
        assert!(operation(&HeaderMap::new()).is_err());
    }

    #[test]
    fn what_a_body_says_is_never_quoted() {
        let problem = parsed::<GetSecretValue>(b"{\"SecretId\": [\"hunter2\"]}").unwrap_err();
        assert!(!format!("{problem:?}").contains("hunter2"));
        let input: GetSecretValue = parsed(b"{\"SecretId\": \"a\", \"Unknown\": 1}").unwrap();
        assert_eq!(input.secret_id.as_deref(), Some("a"));
    }

    #[test]
    fn request_ids_look_like_awss() {
        let mut response = Response::new(Body::default());
        note_request_id(&mut response);
        let id = response.headers()[REQUEST_ID].to_str().unwrap().to_owned();
        let lengths: Vec<usize> = id.split('-').map(str::len).collect();
        assert_eq!((lengths, &id[14..15]), (vec![8, 4, 4, 4, 12], "4"));
    }
}
