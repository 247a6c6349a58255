//! Scripted answers of AWS, and what becomes of them.

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_secretsmanager::config::{IntoShared, SharedHttpClient};
use aws_smithy_http_client::test_util::{ReplayEvent, StaticReplayClient};
use aws_smithy_types::body::SdkBody;
use tokio::time::advance;

use super::clients::MIN_RENEWAL;
use super::*;
use crate::secret::{Resolver, SecretPath, VersionSelector};

const ARN: &str = "arn:aws:secretsmanager:us-west-2:123456789012:secret:";

fn options() -> AwsOptions {
    AwsOptions {
        region: Some("us-west-2".to_owned()),
        endpoint_url: None,
        sts_endpoint_url: None,
        profile: None,
        role_arn: None,
        connect_timeout: Duration::from_secs(1),
        attempt_timeout: Duration::from_secs(3),
        operation_timeout: Duration::from_secs(5),
        identity_timeout: Duration::from_secs(2),
        max_attempts: 3,
        ca_bundle: None,
    }
}

fn key(raw: &str, selector: VersionSelector) -> SecretKey {
    Resolver::default().resolve(SecretPath::parse(raw).unwrap(), selector).unwrap()
}

/// A source whose HTTP client gives these answers, one an attempt.
fn scripted(answers: &[(u16, &str)]) -> (AwsSource, StaticReplayClient) {
    let events = answers.iter().map(|(status, body)| {
        let request = hyper::Request::builder().uri("https://x/").body(SdkBody::empty()).unwrap();
        let response = hyper::Response::builder().status(*status).header("retry-after", "7");
        ReplayEvent::new(request, response.body(SdkBody::from(*body)).unwrap())
    });
    let replay = StaticReplayClient::new(events.collect());
    let http: SharedHttpClient = replay.clone().into_shared();
    let credentials = SharedCredentialsProvider::new(Credentials::for_tests());
    let source = AwsSource { clients: Clients::with(options(), http, credentials), max_attempts: 3 };
    (source, replay)
}

async fn fetch(source: &AwsSource) -> Result<SecretVersion, SourceError> {
    source.fetch(&key("db", VersionSelector::current()), Urgency::Cold).await
}

fn failure(code: &str, message: &str) -> String {
    format!("{{\"__type\":\"{code}\",\"Message\":\"{message}\"}}")
}

fn success() -> String {
    format!(
        "{{\"ARN\":\"{ARN}db-AbCdEf\",\"Name\":\"db\",\"VersionId\":\"v1\",\"SecretString\":\"hunter2\",\
         \"VersionStages\":[\"AWSCURRENT\"],\"CreatedDate\":1523477145.713}}"
    )
}

#[tokio::test(start_paused = true)]
async fn an_answer_becomes_a_version() {
    let (source, _) = scripted(&[(200, &success())]);
    let version = fetch(&source).await.unwrap();
    assert_eq!(version.arn, format!("{ARN}db-AbCdEf"));
    assert_eq!((version.name.as_str(), version.version_id.as_str()), ("db", "v1"));
    assert_eq!(version.version_stages, ["AWSCURRENT"]);
    assert_eq!(&version.value.expose()[..], b"hunter2");
    assert!(version.value.is_text() && version.created_date.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_binary_is_decoded_once() {
    let body = success().replace("\"SecretString\":\"hunter2\"", "\"SecretBinary\":\"AAECA/8=\"");
    let (source, _) = scripted(&[(200, &body)]);
    let version = fetch(&source).await.unwrap();
    assert_eq!(&version.value.expose()[..], [0, 1, 2, 3, 255]);
    assert!(!version.value.is_text());
}

#[tokio::test(start_paused = true)]
async fn the_stage_is_always_sent_unless_only_an_id_is_asked_for() {
    let cases = [
        (None, None, "{\"SecretId\":\"db\",\"VersionStage\":\"AWSCURRENT\"}"),
        (None, Some("AWSPREVIOUS"), "{\"SecretId\":\"db\",\"VersionStage\":\"AWSPREVIOUS\"}"),
        (Some("v1"), None, "{\"SecretId\":\"db\",\"VersionId\":\"v1\"}"),
    ];
    for (id, stage, expected) in cases {
        let (source, replay) = scripted(&[(200, &success())]);
        let selector = VersionSelector::new(id, stage).unwrap();
        source.fetch(&key("db", selector), Urgency::Cold).await.unwrap();
        let sent = replay.actual_requests().next().unwrap();
        let body = std::str::from_utf8(sent.body().bytes().unwrap()).unwrap();
        let sorted = |text: &str| -> serde_json::Value { serde_json::from_str(text).unwrap() };
        assert_eq!(sorted(body), sorted(expected));
        assert_eq!(sent.headers().get("x-amz-target"), Some("secretsmanager.GetSecretValue"));
    }
}

#[tokio::test(start_paused = true)]
async fn the_region_of_an_arn_is_the_one_that_is_asked() {
    let (source, replay) = scripted(&[(200, &success())]);
    let arn = format!("{}/db-AbCdEf", ARN.replace("us-west-2", "eu-central-1"));
    source.fetch(&key(&arn, VersionSelector::current()), Urgency::Cold).await.unwrap();
    let sent = replay.actual_requests().next().unwrap();
    assert!(sent.uri().contains("secretsmanager.eu-central-1.amazonaws.com"), "{}", sent.uri());
}

/// The table: what AWS sends, how often it is tried, what that means.
#[tokio::test(start_paused = true)]
async fn every_error_is_sorted_by_its_code() {
    let throttled = SourceError::Throttled { retry_after: Some(Duration::from_secs(7)) };
    let unusable = |error: &SourceError| matches!(error, SourceError::Unusable { .. });
    let deleted = "You can't perform this operation on the secret because it was marked for deletion.";
    let is = |expected: SourceError| move |error: &SourceError| *error == expected;
    let rejected = |code: &str| SourceError::IdentityRejected { code: code.to_owned() };
    let invalid = |code: &str| SourceError::InvalidRequest { code: code.to_owned() };
    type Check<'a> = Box<dyn Fn(&SourceError) -> bool + 'a>;
    let cases: Vec<(u16, String, usize, Check<'_>)> = vec![
        (400, failure("ResourceNotFoundException", "x"), 1, Box::new(is(SourceError::NotFound))),
        (404, failure("ResourceNotFoundException", "x"), 1, Box::new(is(SourceError::NotFound))),
        (400, failure("InvalidRequestException", deleted), 1, Box::new(is(SourceError::Deleted))),
        (
            400,
            failure("InvalidRequestException", "other"),
            1,
            Box::new(is(invalid("InvalidRequestException"))),
        ),
        (400, failure("AccessDeniedException", "x"), 1, Box::new(is(SourceError::AccessDenied))),
        (
            400,
            failure("InvalidParameterException", "x"),
            1,
            Box::new(is(invalid("InvalidParameterException"))),
        ),
        (400, failure("ValidationException", "x"), 1, Box::new(is(invalid("ValidationException")))),
        (400, failure("DecryptionFailure", "x"), 1, Box::new(is(SourceError::DecryptionFailure))),
        (400, failure("ExpiredTokenException", "x"), 1, Box::new(is(rejected("ExpiredTokenException")))),
        (
            400,
            failure("UnrecognizedClientException", "x"),
            1,
            Box::new(is(rejected("UnrecognizedClientException"))),
        ),
        (
            400,
            failure("InvalidSignatureException", "x"),
            1,
            Box::new(is(rejected("InvalidSignatureException"))),
        ),
        (400, failure("ThrottlingException", "x"), 3, Box::new(is(throttled.clone()))),
        (
            400,
            failure("LimitExceededException", "x"),
            3,
            Box::new(|e| matches!(e, SourceError::Throttled { .. })),
        ),
        (429, String::new(), 1, Box::new(is(throttled.clone()))),
        (500, failure("InternalServiceError", "x"), 3, Box::new(is(SourceError::Upstream { status: 500 }))),
        (503, String::new(), 3, Box::new(is(SourceError::Upstream { status: 503 }))),
        (403, "<html>Forbidden</html>".to_owned(), 1, Box::new(unusable)),
        (413, String::new(), 1, Box::new(unusable)),
        (200, "{\"ARN\":".to_owned(), 1, Box::new(unusable)),
        (200, "{}".to_owned(), 1, Box::new(unusable)),
        (200, "{\"SecretString\":\"hunter2\"}".to_owned(), 1, Box::new(unusable)),
    ];
    for (status, body, attempts, check) in cases {
        let (source, replay) = scripted(&[(status, &body), (status, &body), (status, &body)]);
        let error = fetch(&source).await.unwrap_err();
        assert!(check(&error), "{status} {body}: {error:?}");
        assert_eq!(replay.actual_requests().count(), attempts, "{status} {body}");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_makes_two_attempts_at_most() {
    let (source, replay) = scripted(&[(503, ""), (503, ""), (503, "")]);
    let refused = source.fetch(&key("db", VersionSelector::current()), Urgency::Refresh).await;
    assert_eq!(refused, Err(SourceError::Upstream { status: 503 }));
    assert_eq!(replay.actual_requests().count(), 2);
}

#[tokio::test(start_paused = true)]
async fn rejected_credentials_make_a_fresh_client_at_most_once_per_some_seconds() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Debug)]
    struct Counted(Arc<AtomicUsize>);
    impl aws_credential_types::provider::ProvideCredentials for Counted {
        fn provide_credentials<'a>(&'a self) -> aws_credential_types::provider::future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            self.0.fetch_add(1, Ordering::SeqCst);
            aws_credential_types::provider::future::ProvideCredentials::ready(Ok(Credentials::for_tests()))
        }
    }

    let expired = failure("ExpiredTokenException", "x");
    let (_, replay) = scripted(&[(400, expired.as_str()); 10]);
    let loads = Arc::new(AtomicUsize::new(0));
    let credentials = SharedCredentialsProvider::new(Counted(Arc::clone(&loads)));
    let clients = Clients::with(options(), replay.into_shared(), credentials);
    let source = AwsSource { clients, max_attempts: 3 };
    for _ in 0..5 {
        fetch(&source).await.unwrap_err();
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1, "not within the same seconds");
    advance(MIN_RENEWAL).await;
    fetch(&source).await.unwrap_err();
    fetch(&source).await.unwrap_err();
    assert_eq!(loads.load(Ordering::SeqCst), 2);
}
