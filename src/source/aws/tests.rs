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
use crate::source::{BatchAnswer, BatchError};

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
        ca_bundle: None,
        credential_files: Vec::new(),
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
    let source = AwsSource { clients: Clients::with(options(), http, credentials) };
    (source, replay)
}

async fn fetch(source: &AwsSource) -> Result<SecretVersion, SourceError> {
    source.fetch(&key("db", VersionSelector::current())).await
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
    assert_eq!((version.name.as_str(), &*version.version_id), ("db", "v1"));
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
        source.fetch(&key("db", selector)).await.unwrap();
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
    source.fetch(&key(&arn, VersionSelector::current())).await.unwrap();
    let sent = replay.actual_requests().next().unwrap();
    assert!(sent.uri().contains("secretsmanager.eu-central-1.amazonaws.com"), "{}", sent.uri());
}

/// The table: what AWS sends, what that means. Each is one attempt.
#[tokio::test(start_paused = true)]
async fn every_error_is_sorted_by_its_code() {
    let throttled = SourceError::Throttled { retry_after: Some(Duration::from_secs(7)) };
    let unusable = |error: &SourceError| matches!(error, SourceError::Unusable { .. });
    let deleted = "You can't perform this operation on the secret because it was marked for deletion.";
    let is = |expected: SourceError| move |error: &SourceError| *error == expected;
    let rejected = |code: &str| SourceError::IdentityRejected { code: code.to_owned() };
    let invalid = |code: &str| SourceError::InvalidRequest { code: code.to_owned() };
    type Check<'a> = Box<dyn Fn(&SourceError) -> bool + 'a>;
    let cases: Vec<(u16, String, Check<'_>)> = vec![
        (400, failure("ResourceNotFoundException", "x"), Box::new(is(SourceError::NotFound))),
        (404, failure("ResourceNotFoundException", "x"), Box::new(is(SourceError::NotFound))),
        (400, failure("InvalidRequestException", deleted), Box::new(is(SourceError::Deleted))),
        (400, failure("InvalidRequestException", "other"), Box::new(is(invalid("InvalidRequestException")))),
        (400, failure("AccessDeniedException", "x"), Box::new(is(SourceError::AccessDenied))),
        (400, failure("InvalidParameterException", "x"), Box::new(is(invalid("InvalidParameterException")))),
        (400, failure("ValidationException", "x"), Box::new(is(invalid("ValidationException")))),
        (400, failure("DecryptionFailure", "x"), Box::new(is(SourceError::DecryptionFailure))),
        (400, failure("ExpiredTokenException", "x"), Box::new(is(rejected("ExpiredTokenException")))),
        (
            400,
            failure("UnrecognizedClientException", "x"),
            Box::new(is(rejected("UnrecognizedClientException"))),
        ),
        (400, failure("InvalidSignatureException", "x"), Box::new(is(rejected("InvalidSignatureException")))),
        (400, failure("ThrottlingException", "x"), Box::new(is(throttled.clone()))),
        (400, failure("LimitExceededException", "x"), Box::new(is(throttled.clone()))),
        (429, String::new(), Box::new(is(throttled.clone()))),
        (500, failure("InternalServiceError", "x"), Box::new(is(SourceError::Upstream { status: 500 }))),
        (503, String::new(), Box::new(is(SourceError::Upstream { status: 503 }))),
        (403, "<html>Forbidden</html>".to_owned(), Box::new(unusable)),
        (413, String::new(), Box::new(unusable)),
        (200, "{\"ARN\":".to_owned(), Box::new(unusable)),
        (200, "{}".to_owned(), Box::new(unusable)),
        (200, "{\"SecretString\":\"hunter2\"}".to_owned(), Box::new(unusable)),
    ];
    for (status, body, check) in cases {
        let (source, replay) = scripted(&[(status, &body), (status, &body)]);
        let error = fetch(&source).await.unwrap_err();
        assert!(check(&error), "{status} {body}: {error:?}");
        assert_eq!(replay.actual_requests().count(), 1, "one attempt: {status} {body}");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}

/// One answer for several keys, which are asked for by name, complete ARN and partial ARN.
async fn batch(answers: &[(u16, &str)]) -> (Result<BatchAnswer, BatchError>, usize) {
    let (source, replay) = scripted(answers);
    let arn = |name: &str| key(&format!("{ARN}/{name}"), VersionSelector::current());
    let keys = [key("a", VersionSelector::current()), arn("b-AbCdEf"), arn("c"), arn("a-AbCdEf")];
    let answer = source.fetch_batch(&keys).await;
    (answer, replay.actual_requests().count())
}

fn entry(name: &str) -> String {
    success().replace("db", name)
}

/// In which order do the answers lie: the names of values, or the errors.
fn outline(answer: Result<BatchAnswer, BatchError>) -> Vec<String> {
    let outline = |answer: Option<Result<SecretVersion, SourceError>>| match answer {
        Some(Ok(version)) => version.name,
        Some(Err(error)) => error.kind().to_owned(),
        None => "nothing".to_owned(),
    };
    answer.unwrap().into_iter().map(outline).collect()
}

#[tokio::test(start_paused = true)]
async fn the_answers_of_a_batch_are_put_beside_what_they_answer() {
    let values = format!("{{\"SecretValues\":[{},{},{}],\"Errors\":[]}}", entry("c"), entry("a"), entry("b"));
    let (answer, calls) = batch(&[(200, &values)]).await;
    assert_eq!((outline(answer), calls), (["a", "b", "c", "a"].map(str::to_owned).to_vec(), 1));
}

#[tokio::test(start_paused = true)]
async fn each_id_of_a_batch_has_its_own_error_or_none() {
    let error = |id: &str, code: &str| {
        format!("{{\"SecretId\":\"{id}\",\"ErrorCode\":\"{code}\",\"Message\":\"marked for deletion\"}}")
    };
    let errors = [
        error("a", "ResourceNotFoundException"),
        error(&format!("{ARN}b-AbCdEf"), "InvalidRequestException"),
        error("of-another", "AccessDeniedException"),
    ];
    let body = format!("{{\"SecretValues\":[{}],\"Errors\":[{}]}}", entry("zzz"), errors.join(","));
    let (answer, _) = batch(&[(200, &body)]).await;
    assert_eq!(outline(answer), ["not_found", "deleted", "nothing", "nothing"]);
}

#[tokio::test(start_paused = true)]
async fn all_pages_of_a_batch_are_read_and_no_more_than_can_be() {
    let page = |name: &str| format!("{{\"SecretValues\":[{}],\"NextToken\":\"more\"}}", entry(name));
    let last = format!("{{\"SecretValues\":[{}]}}", entry("c"));
    let (answer, calls) = batch(&[(200, &page("a")), (200, &page("b")), (200, &last)]).await;
    assert_eq!((outline(answer), calls), (["a", "b", "c", "a"].map(str::to_owned).to_vec(), 3));
    let endless = page("a");
    let (answer, calls) = batch(&[(200, endless.as_str()); 9]).await;
    assert_eq!((outline(answer)[0].as_str(), calls), ("a", 4));
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_denied_or_unknown_is_unsupported_and_else_it_failed() {
    let cases = [
        (400, failure("AccessDeniedException", "x"), None),
        (400, failure("UnknownOperationException", "x"), None),
        (403, "<ErrorResponse><Code>AccessDenied</Code></ErrorResponse>".to_owned(), None),
        (404, String::new(), None),
        (501, String::new(), None),
        (400, failure("ThrottlingException", "x"), Some("throttled")),
        (429, String::new(), Some("throttled")),
        (503, String::new(), Some("server_error")),
        (400, failure("ExpiredTokenException", "x"), Some("credentials_rejected")),
        (200, "{\"SecretValues\":".to_owned(), Some("unusable_answer")),
    ];
    for (status, body, expected) in cases {
        match (batch(&[(status, &body)]).await.0, expected) {
            (Err(BatchError::Unsupported), None) => {}
            (Err(BatchError::Failed(error)), Some(kind)) => assert_eq!(error.kind(), kind, "{status} {body}"),
            (other, _) => panic!("{status} {body}: {other:?}"),
        }
    }
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
    let source = AwsSource { clients };
    for _ in 0..5 {
        fetch(&source).await.unwrap_err();
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1, "not within the same seconds");
    advance(MIN_RENEWAL).await;
    fetch(&source).await.unwrap_err();
    fetch(&source).await.unwrap_err();
    assert_eq!(loads.load(Ordering::SeqCst), 2);
}
