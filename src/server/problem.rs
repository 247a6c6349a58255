//! The one place where an error becomes an HTTP answer: `application/problem+json` (RFC 9457), with a
//! stable `code` and never a part of a secret's value; or the same in the words of another API.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use hyper::{Method, Response, StatusCode};
use serde::Serialize;

use super::dialect::{AWS_JSON, AgentError, AwsError, Dialect, as_agent, as_aws};
use super::headers::rendered;
use crate::access::Denied;
use crate::cache::ReadError;
use crate::net::Body;
use crate::secret::ReferenceError;
use crate::source::SourceError;

/// What a client is told to wait when AWS does not say.
const RETRY_AFTER_SECONDS: u64 = 5;

const TEXT: &str = "text/plain; charset=utf-8";

/// An error as a client sees it.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: Cow<'static, str>,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// For `smcached_rejected_total`: which guard refused the request.
    rejection: Option<&'static str>,
}

/// The members of a problem, in the order in which they are read.
#[derive(Serialize)]
struct Document<'a> {
    r#type: &'static str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'a str,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code, detail: detail.into(), headers: Vec::new(), rejection: None }
    }

    fn rejecting(mut self, reason: &'static str) -> Self {
        self.rejection = Some(reason);
        self
    }

    fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The connection cannot be used after this.
    pub(super) fn closing(self) -> Self {
        self.header(CONNECTION, HeaderValue::from_static("close"))
    }

    /// With the `Cache-Status` of the read that failed.
    pub(super) fn cache_status(self, value: HeaderValue) -> Self {
        self.header(HeaderName::from_static("cache-status"), value)
    }

    /// A message that HTTP does not allow.
    pub(super) fn malformed(detail: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed_request", detail).rejecting("malformed")
    }

    /// A body where none belongs.
    pub(super) fn unexpected_body() -> Self {
        let detail = "requests have no body here";
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_not_accepted", detail).rejecting("malformed")
    }

    /// A path and query over the limit.
    pub(super) fn target_too_long(limit: usize) -> Self {
        let detail = format!("the path and query have more than {limit} bytes");
        Self::new(StatusCode::URI_TOO_LONG, "uri_too_long", detail).rejecting("malformed")
    }

    /// A request that a proxy passed on.
    pub(super) fn forwarded() -> Self {
        let detail = "requests with X-Forwarded-For, Forwarded or Via are refused; call the daemon directly";
        Self::new(StatusCode::BAD_REQUEST, "forwarded_request", detail).rejecting("forwarded")
    }

    /// A Host that is not ours.
    pub(super) fn foreign_host() -> Self {
        let detail =
            "the Host header must be localhost, a loopback address or one of the listener's allowed_hosts";
        Self::new(StatusCode::FORBIDDEN, "host_not_allowed", detail).rejecting("host")
    }

    /// A request that a web page has made.
    pub(super) fn foreign_origin() -> Self {
        let detail = "requests with Origin are refused: web pages may not read secrets";
        Self::new(StatusCode::FORBIDDEN, "origin_not_allowed", detail).rejecting("origin")
    }

    /// More answers wait to be read than there is room for.
    pub(super) fn too_many_bodies() -> Self {
        let detail = "the answers that clients have not read yet take all the room there is; ask again later";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_unread", detail)
            .rejecting("unread")
            .retry_after(None)
    }

    /// A reader that would wait for a change, where as many wait as may.
    pub(super) fn too_many_waiting() -> Self {
        let detail = "as many readers wait for a change here as may; ask again later, or without wait";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_waiting", detail)
            .rejecting("waiting")
            .retry_after(None)
    }

    /// A path that nothing answers to.
    pub(super) fn no_route() -> Self {
        let detail = "no such path; secrets are at /secret/<group>/<key>";
        Self::new(StatusCode::NOT_FOUND, "route_not_found", detail)
    }

    /// Another method than those that the path allows.
    pub(super) fn method_not_allowed(allowed: &[Method]) -> Self {
        let allowed: Vec<&str> = allowed.iter().map(Method::as_str).collect();
        let allowed = allowed.join(", ");
        let detail = format!("accepted methods: {allowed}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
            .header(ALLOW, rendered(&allowed))
    }

    /// An operation of Secrets Manager that a cache cannot do, or its manner that it does not know.
    pub(super) fn operation_not_allowed(what: &str) -> Self {
        let detail = format!(
            "smcached only reads: it answers GetSecretValue, DescribeSecret and BatchGetSecretValue by SecretIdList, \
             not {what}; ask AWS itself for that"
        );
        Self::new(StatusCode::FORBIDDEN, "operation_not_allowed", detail)
    }

    /// Something that is no operation of Secrets Manager.
    pub(super) fn unknown_operation() -> Self {
        let detail = "the X-Amz-Target header must name an operation, such as secretsmanager.GetSecretValue";
        Self::new(StatusCode::BAD_REQUEST, "unknown_operation", detail)
    }

    /// A body that does not say what it must.
    pub(super) fn malformed_body(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed_body", detail)
    }

    /// A body over the limit.
    pub(super) fn body_too_large(limit: usize) -> Self {
        let detail = format!("the body has more than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail).rejecting("malformed").closing()
    }

    /// A query parameter that is not known, given twice, or has an unacceptable value.
    pub(super) fn parameter(code: &'static str, detail: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// The secret is there, the field is not.
    pub(super) fn field_not_found() -> Self {
        let detail = "the secret is not a JSON document that has this field";
        Self::new(StatusCode::NOT_FOUND, "field_not_found", detail)
    }

    /// A defect of ours.
    pub(super) fn internal() -> Self {
        let detail = "the request failed unexpectedly; this is a defect of smcached";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", detail)
    }

    fn retry_after(self, after: Option<Duration>) -> Self {
        let seconds = after.map_or(RETRY_AFTER_SECONDS, |after| {
            after.as_millis().div_ceil(1000).max(1).try_into().unwrap_or(RETRY_AFTER_SECONDS)
        });
        self.header(RETRY_AFTER, HeaderValue::from(seconds))
    }

    /// Which guard refused the request, if one did.
    pub(super) fn rejection(&self) -> Option<&'static str> {
        self.rejection
    }

    #[cfg(test)]
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// What programs know it by.
    pub(super) fn code(&self) -> &'static str {
        self.code
    }

    /// The error as AWS has it in the entries of a batch: its code and its message.
    pub(super) fn into_aws(self) -> (&'static str, Cow<'static, str>) {
        let error = as_aws(self.code);
        (error.kind, error.message.map_or(self.detail, Cow::Borrowed))
    }

    /// The answer, in the words of the API that was asked.
    pub(super) fn into_response(self, dialect: Dialect) -> Response<Body> {
        let (status, content_type, body) = match dialect {
            Dialect::Native => (self.status, "application/problem+json", self.document()),
            Dialect::Aws => self.aws_document(as_aws(self.code), AWS_JSON, "Message"),
            Dialect::Agent => match as_agent(self.code) {
                AgentError::Text(status, text) => (status_of(status), TEXT, text.into()),
                AgentError::Detail => (self.status, TEXT, self.detail.as_bytes().to_vec()),
                AgentError::Aws(error) => self.aws_document(error, "application/json", "message"),
            },
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.extend(self.headers);
        response
    }

    fn document(&self) -> Vec<u8> {
        written(&Document {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or_default(),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code,
        })
    }

    fn aws_document(
        &self,
        error: AwsError,
        content_type: &'static str,
        message: &'static str,
    ) -> (StatusCode, &'static str, Vec<u8>) {
        let document =
            BTreeMap::from([("__type", error.kind), (message, error.message.unwrap_or(&self.detail))]);
        (status_of(error.status), content_type, written(&document))
    }
}

/// Plain text and numbers always serialize; were that to fail, the status alone would tell.
fn written(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document).unwrap_or_default()
}

fn status_of(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        let (status, code, reason) = match denied {
            Denied::TokenMissing => (StatusCode::UNAUTHORIZED, "token_missing", "token_missing"),
            Denied::TokenWrong => (StatusCode::UNAUTHORIZED, "token_wrong", "token_wrong"),
            Denied::Uid => (StatusCode::FORBIDDEN, "caller_not_allowed", "uid"),
            Denied::Secret => (StatusCode::FORBIDDEN, "caller_not_allowed", "secret"),
            Denied::Role => (StatusCode::FORBIDDEN, "caller_not_allowed", "role"),
        };
        let problem = Self::new(status, code, denied.to_string()).rejecting(reason);
        if status == StatusCode::UNAUTHORIZED {
            // RFC 9110 section 11.6.1: a 401 says how to authenticate.
            return problem.header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        problem
    }
}

impl From<ReferenceError> for Problem {
    fn from(error: ReferenceError) -> Self {
        let status = match error {
            ReferenceError::UnlistedGroup => StatusCode::FORBIDDEN,
            _ => StatusCode::BAD_REQUEST,
        };
        let problem = Self::new(status, error.code(), error.to_string());
        if status == StatusCode::FORBIDDEN { problem.rejecting("unlisted_group") } else { problem }
    }
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::NotHeld => Self::new(StatusCode::GATEWAY_TIMEOUT, "not_cached", error.to_string()),
            ReadError::ForcedTooOften { retry_after } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "forced_refresh_limited", error.to_string())
                    .retry_after(Some(retry_after))
            }
            ReadError::CallerOverBudget { retry_after } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "caller_rate_limited", error.to_string())
                    .rejecting("caller_rate")
                    .retry_after(Some(retry_after))
            }
            ReadError::Source { error, .. } => error.into(),
        }
    }
}

impl From<SourceError> for Problem {
    fn from(error: SourceError) -> Self {
        let (status, code) = match &error {
            SourceError::NotFound => (StatusCode::NOT_FOUND, "secret_not_found"),
            SourceError::Deleted => (StatusCode::NOT_FOUND, "secret_deleted"),
            SourceError::AccessDenied => (StatusCode::FORBIDDEN, "upstream_access_denied"),
            SourceError::InvalidRequest { .. } => (StatusCode::BAD_REQUEST, "upstream_invalid_request"),
            SourceError::DecryptionFailure => (StatusCode::BAD_GATEWAY, "upstream_decryption_failure"),
            SourceError::NoIdentity { .. } => (StatusCode::BAD_GATEWAY, "upstream_no_credentials"),
            SourceError::IdentityRejected { .. } => {
                (StatusCode::BAD_GATEWAY, "upstream_credentials_rejected")
            }
            SourceError::Throttled { .. } => (StatusCode::SERVICE_UNAVAILABLE, "upstream_throttled"),
            SourceError::Upstream { .. } => (StatusCode::BAD_GATEWAY, "upstream_error"),
            SourceError::Unreachable { .. } => (StatusCode::SERVICE_UNAVAILABLE, "upstream_unreachable"),
            SourceError::Timeout => (StatusCode::GATEWAY_TIMEOUT, "upstream_timeout"),
            SourceError::Unusable { .. } => (StatusCode::BAD_GATEWAY, "upstream_unusable_answer"),
            SourceError::LocalLimit => (StatusCode::TOO_MANY_REQUESTS, "upstream_rate_limited"),
            SourceError::Aborted => (StatusCode::INTERNAL_SERVER_ERROR, "internal_error"),
        };
        let problem = Self::new(status, code, error.to_string());
        match error {
            SourceError::Throttled { retry_after } => problem.retry_after(retry_after),
            SourceError::Unreachable { .. } | SourceError::LocalLimit => problem.retry_after(None),
            _ => problem,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_a_document_of_rfc_9457() {
        let response = Problem::from(SourceError::NotFound).into_response(Dialect::Native);
        assert_eq!(response.status(), 404);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
    }

    #[test]
    fn every_error_of_the_source_has_its_status_and_word() {
        let cases = [
            (SourceError::NotFound, 404, "secret_not_found"),
            (SourceError::Deleted, 404, "secret_deleted"),
            (SourceError::AccessDenied, 403, "upstream_access_denied"),
            (SourceError::InvalidRequest { code: "x".into() }, 400, "upstream_invalid_request"),
            (SourceError::DecryptionFailure, 502, "upstream_decryption_failure"),
            (SourceError::NoIdentity { advice: "x".into() }, 502, "upstream_no_credentials"),
            (SourceError::IdentityRejected { code: "x".into() }, 502, "upstream_credentials_rejected"),
            (SourceError::Throttled { retry_after: None }, 503, "upstream_throttled"),
            (SourceError::Upstream { status: 500 }, 502, "upstream_error"),
            (SourceError::Unreachable { reason: "x".into() }, 503, "upstream_unreachable"),
            (SourceError::Timeout, 504, "upstream_timeout"),
            (SourceError::Unusable { reason: "x" }, 502, "upstream_unusable_answer"),
            (SourceError::LocalLimit, 429, "upstream_rate_limited"),
            (SourceError::Aborted, 500, "internal_error"),
        ];
        for (error, status, code) in cases {
            let problem = Problem::from(error);
            assert_eq!((problem.status().as_u16(), problem.code()), (status, code));
            if matches!(status, 429 | 503) {
                assert!(problem.into_response(Dialect::Native).headers().contains_key(RETRY_AFTER), "{code}");
            }
        }
    }

    #[test]
    fn a_401_says_how_to_authenticate_and_a_405_what_is_allowed() {
        let unauthorized = Problem::from(Denied::TokenMissing).into_response(Dialect::Native);
        assert_eq!(unauthorized.headers()[WWW_AUTHENTICATE], "Bearer");
        let wrong_method =
            Problem::method_not_allowed(&[Method::GET, Method::HEAD]).into_response(Dialect::Native);
        assert_eq!(wrong_method.headers()[ALLOW], "GET, HEAD");
    }
}
