//! What an error of the SDK means. The one place that decides, and by AWS's error code rather than by
//! HTTP status: a proxy's 403 is no denial, and a 400 may be throttling.
//!
//! AWS's messages are never passed on, since they name the principal.

use std::error::Error;
use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_secretsmanager::config::http::HttpResponse;
use aws_sdk_secretsmanager::error::{ProvideErrorMetadata, SdkError};

use crate::source::SourceError;

/// By what names AWS throttles; the same list as the SDKs' own.
const THROTTLING: &[&str] = &[
    "BandwidthLimitExceeded",
    "EC2ThrottledException",
    "LimitExceededException",
    "PriorRequestNotComplete",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "SlowDown",
    "ThrottledException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    "TransactionInProgressException",
];

/// Codes that mean that AWS does not accept our credentials
/// (<https://docs.aws.amazon.com/secretsmanager/latest/apireference/CommonErrors.html>).
const IDENTITY: &[&str] = &[
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "IncompleteSignatureException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "NotAuthorized",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
];

const NO_CREDENTIALS: &str = "the daemon has no AWS credentials: give its pod an IAM role (EKS Pod Identity or IRSA), \
     its host an instance or task role, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or [aws] profile";

const CREDENTIALS_FAILED: &str = "the daemon's AWS credentials could not be loaded: check that the role exists and \
     trusts the daemon, that STS or the credentials endpoint can be reached, and the shared configuration";

const CREDENTIALS_SLOW: &str = "no AWS credentials were found in time: check that STS or the credentials endpoint can be \
     reached; if the daemon has no identity, give its pod an IAM role (EKS Pod Identity or IRSA), its host an instance or \
     task role, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or [aws] profile";

/// What the error means.
pub(super) fn classify<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> SourceError {
    match error {
        SdkError::ConstructionFailure(_) => {
            SourceError::InvalidRequest { code: "ConstructionFailure".to_owned() }
        }
        SdkError::TimeoutError(_) => SourceError::Timeout,
        SdkError::DispatchFailure(failure) if failure.is_timeout() => SourceError::Timeout,
        SdkError::DispatchFailure(failure) => {
            let credentials = failure.as_connector_error().and_then(|error| credentials_error(error));
            match credentials {
                Some(error) => no_identity(error),
                None => SourceError::Unreachable { reason: unreachable_reason(failure.is_io()) },
            }
        }
        // The SDK keeps a body that it could read to its end.
        SdkError::ResponseError(response) if response.raw().body().bytes().is_none() => {
            SourceError::Unreachable { reason: "the connection broke in the middle of the answer".to_owned() }
        }
        SdkError::ResponseError(_) => {
            SourceError::Unusable { reason: "it is not what Secrets Manager sends" }
        }
        SdkError::ServiceError(service) => classify_service(service.err(), service.raw()),
        _ => SourceError::Unusable { reason: "the SDK does not know it" },
    }
}

/// An error that AWS, or something in its place, sent.
fn classify_service<E: ProvideErrorMetadata>(error: &E, raw: &HttpResponse) -> SourceError {
    let status = raw.status().as_u16();
    match error.code() {
        Some(code) => classify_code(code, error.message(), status, retry_after(raw)),
        None if status == 429 => SourceError::Throttled { retry_after: retry_after(raw) },
        None if status >= 500 => SourceError::Upstream { status },
        None => SourceError::Unusable { reason: "it is an error without a code, perhaps of a proxy" },
    }
}

/// What a code of AWS means; within a batch, each secret has its own.
pub(super) fn classify_code(
    code: &str,
    message: Option<&str>,
    status: u16,
    retry_after: Option<Duration>,
) -> SourceError {
    match code {
        "ResourceNotFoundException" => SourceError::NotFound,
        "AccessDeniedException" | "AccessDenied" => SourceError::AccessDenied,
        "InvalidRequestException" if is_about_deletion(message) => SourceError::Deleted,
        "InvalidRequestException" | "InvalidParameterException" | "ValidationException" => {
            SourceError::InvalidRequest { code: code.to_owned() }
        }
        "DecryptionFailure" | "DecryptionFailureException" => SourceError::DecryptionFailure,
        "InternalServiceError" | "InternalServiceErrorException" | "InternalFailure" => {
            SourceError::Upstream { status }
        }
        _ if THROTTLING.contains(&code) || status == 429 => SourceError::Throttled { retry_after },
        _ if IDENTITY.contains(&code) => SourceError::IdentityRejected { code: code.to_owned() },
        _ => SourceError::Upstream { status },
    }
}

/// `InvalidRequestException` has no finer code; only its text tells that the secret is marked for deletion.
fn is_about_deletion(message: Option<&str>) -> bool {
    message.is_some_and(|message| message.to_ascii_lowercase().contains("delet"))
}

fn retry_after(raw: &HttpResponse) -> Option<Duration> {
    raw.headers().get("retry-after")?.trim().parse().ok().map(Duration::from_secs)
}

fn credentials_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a CredentialsError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// What to tell those who depend on credentials that could not be loaded.
pub(super) fn no_identity(error: &CredentialsError) -> SourceError {
    let advice = match error {
        CredentialsError::CredentialsNotLoaded(_) => NO_CREDENTIALS,
        CredentialsError::ProviderTimedOut(_) => CREDENTIALS_SLOW,
        _ => CREDENTIALS_FAILED,
    };
    SourceError::NoIdentity { advice: advice.to_owned() }
}

fn unreachable_reason(is_io: bool) -> String {
    let reason = if is_io {
        "the connection was refused, reset or not trusted, or the endpoint's name does not resolve"
    } else {
        "the connection was closed before an answer came"
    };
    reason.to_owned()
}
