//! How each way in words one and the same error: `problem` decides what the error is, this how its API says it.
//!
//! Programs look at AWS's error codes, and the SDKs retry by them, so a code here is chosen for what a client does
//! next (<https://docs.aws.amazon.com/secretsmanager/latest/apireference/CommonErrors.html>).

/// The media type of AWS JSON 1.1.
pub(super) const AWS_JSON: &str = "application/x-amz-json-1.1";

/// An API, as far as errors differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `application/problem+json` (RFC 9457).
    Native,
    /// AWS's agent: plain text for what it refuses itself, `__type` and `message` for the rest.
    Agent,
    /// AWS JSON 1.1: `__type` and `Message`.
    Aws,
}

/// An error in AWS's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AwsError {
    /// `ResourceNotFoundException` and the like.
    pub(super) kind: &'static str,
    pub(super) status: u16,
    /// AWS's own text where programs compare it; else the problem's detail says more.
    pub(super) message: Option<&'static str>,
}

/// What AWS would say in the place of a problem with this code.
pub(super) fn as_aws(code: &str) -> AwsError {
    let (kind, status, message) = match code {
        "secret_not_found" => {
            ("ResourceNotFoundException", 400, Some("Secrets Manager can't find the specified secret."))
        }
        "secret_deleted" => (
            "InvalidRequestException",
            400,
            Some("You can't perform this operation on the secret because it was marked for deletion."),
        ),
        "upstream_access_denied"
        | "caller_not_allowed"
        | "host_not_allowed"
        | "origin_not_allowed"
        | "forwarded_request"
        | "operation_not_allowed" => ("AccessDeniedException", 400, None),
        "token_missing" => ("MissingAuthenticationTokenException", 400, None),
        "token_wrong" => ("UnrecognizedClientException", 400, None),
        "unknown_operation" => ("UnknownOperationException", 400, None),
        "malformed_body" => ("SerializationException", 400, None),
        "body_not_accepted" | "body_too_large" => ("RequestEntityTooLargeException", 413, None),
        "upstream_invalid_request" => ("InvalidParameterException", 400, None),
        "upstream_decryption_failure" => ("DecryptionFailure", 400, None),
        // The SDKs try again by themselves, with backoff.
        "upstream_throttled"
        | "upstream_rate_limited"
        | "forced_refresh_limited"
        | "caller_rate_limited"
        | "too_many_waiting"
        | "too_many_unread"
        | "too_many_connections" => ("ThrottlingException", 400, None),
        "upstream_error"
        | "upstream_unusable_answer"
        | "upstream_unreachable"
        | "upstream_timeout"
        | "upstream_no_credentials"
        | "upstream_credentials_rejected"
        | "internal_error" => ("InternalServiceError", 500, None),
        // The id, a version or a parameter.
        _ => ("ValidationException", 400, None),
    };
    AwsError { kind, status, message }
}

/// What AWS's agent says in the place of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AgentError {
    /// Plain text.
    Text(u16, &'static str),
    /// Plain text: the problem's detail, with its status.
    Detail,
    /// What it has from AWS, or from the way there.
    Aws(AwsError),
}

/// What AWS's agent would say in the place of a problem with this code.
pub(super) fn as_agent(code: &str) -> AgentError {
    let aws = as_aws(code);
    let of_agent = |kind, status| AgentError::Aws(AwsError { kind, status, message: aws.message });
    match code {
        "forwarded_request" => AgentError::Text(400, "Forwarded"),
        "token_missing" | "token_wrong" => AgentError::Text(403, "Bad Token"),
        "method_not_allowed" => AgentError::Text(405, "Not allowed"),
        "route_not_found" => AgentError::Text(404, "Not found"),
        "unknown_parameter" | "repeated_parameter" | "invalid_parameter" | "missing_parameter"
        | "malformed_request" | "body_not_accepted" | "uri_too_long" | "host_not_allowed"
        | "origin_not_allowed" => AgentError::Detail,
        "caller_not_allowed" => of_agent(aws.kind, 403),
        "upstream_error" | "upstream_unusable_answer" | "upstream_unreachable" => {
            of_agent("ConnectionError", 502)
        }
        "upstream_timeout" => of_agent("TimeoutError", 504),
        "upstream_rate_limited" | "forced_refresh_limited" | "caller_rate_limited" => of_agent(aws.kind, 429),
        _ if aws.status == 500 => of_agent("InternalFailure", 500),
        _ => AgentError::Aws(aws),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every code that the documents list for the native API is worded on purpose.
    #[test]
    fn every_code_is_said_in_the_words_of_aws() {
        let documented = include_str!("../../docs/http-api.md");
        let errors = documented.split("## Errors").nth(1).unwrap().split("\n## ").next().unwrap();
        let mut seen = 0;
        for row in errors.lines().filter(|line| line.starts_with("| ") && line.contains('`')) {
            let mut columns = row.split('|').skip(1);
            let status = columns.next().unwrap().trim();
            for code in columns.next().unwrap().split('`').skip(1).step_by(2) {
                let is_server_fault = status.starts_with('5')
                    && !matches!(
                        code,
                        "upstream_throttled"
                            | "not_cached"
                            | "too_many_waiting"
                            | "too_many_unread"
                            | "too_many_connections"
                    );
                let is_decryption = code == "upstream_decryption_failure";
                assert_eq!(as_aws(code).status == 500, is_server_fault && !is_decryption, "{code}");
                seen += 1;
            }
        }
        assert!(seen > 25, "{seen}");
    }

    #[test]
    fn the_agents_own_refusals_are_plain_text() {
        assert_eq!(as_agent("forwarded_request"), AgentError::Text(400, "Forwarded"));
        assert_eq!(as_agent("token_wrong"), AgentError::Text(403, "Bad Token"));
        assert_eq!(as_agent("unknown_parameter"), AgentError::Detail);
        let AgentError::Aws(error) = as_agent("upstream_timeout") else { panic!() };
        assert_eq!((error.kind, error.status), ("TimeoutError", 504));
    }
}
