//! `BatchGetSecretValue`: up to twenty secrets in one call. It needs a permission of its own besides
//! `GetSecretValue` on each secret, and knows `AWSCURRENT` only
//! (<https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_BatchGetSecretValue.html>).

use aws_sdk_secretsmanager::config::http::HttpResponse;
use aws_sdk_secretsmanager::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_secretsmanager::types::{ApiErrorType, SecretValueEntry};

use super::AwsSource;
use super::classify::{classify, classify_code};
use crate::hardening;
use crate::secret::{SecretKey, SecretVersion};
use crate::source::{BatchAnswer, BatchError, SourceError};

/// The most ids of one call.
pub(super) const MAX_IDS: usize = 20;

/// Codes by which a service says that it does not know the operation, or not for us.
const UNSUPPORTED: &[&str] = &[
    "AccessDenied",
    "AccessDeniedException",
    "InvalidAction",
    "InvalidParameterException",
    "NotImplemented",
    "NotImplementedException",
    "UnknownOperation",
    "UnknownOperationException",
    "UnsupportedOperation",
    "UnsupportedOperationException",
    "ValidationException",
];

impl AwsSource {
    /// Asks for all `keys`, page by page. They are of one region and role, and current.
    pub(super) async fn batch_get_secret_value(&self, keys: &[SecretKey]) -> Result<BatchAnswer, BatchError> {
        let Some(first) = keys.first() else { return Ok(Vec::new()) };
        let place = self.clients.place(first);
        let client = self.clients.client_at(&place).await.map_err(BatchError::Failed)?;
        let ids: Vec<String> = keys.iter().map(|key| key.id.as_str().to_owned()).collect();
        let mut answers = Answers::of(keys);
        let mut next_token = None;
        // Every page but the last answers at least one id; more pages than ids would never end.
        for _ in keys {
            let page = client.batch_get_secret_value().set_secret_id_list(Some(ids.clone()));
            let page = page.set_next_token(next_token).send().await;
            hardening::scrub_stack();
            let page = match page {
                Ok(page) => page,
                Err(error) if is_unsupported(&error) => return Err(BatchError::Unsupported),
                Err(error) => return Err(BatchError::Failed(self.renewing(&place, classify(&error)).await)),
            };
            for entry in page.secret_values.unwrap_or_default() {
                answers.add_value(entry);
            }
            for error in page.errors.unwrap_or_default() {
                answers.add_error(&error);
            }
            next_token = page.next_token.filter(|token| !token.is_empty());
            if next_token.is_none() {
                break;
            }
        }
        Ok(answers.answers)
    }
}

/// Whether single calls may work where this failed: the batch was refused as such, or by something that does not
/// know AWS's codes.
fn is_unsupported<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    let SdkError::ServiceError(service) = error else { return false };
    match (service.err().code(), service.raw().status().as_u16()) {
        (Some(code), _) => UNSUPPORTED.contains(&code),
        (None, 408 | 429) => false,
        (None, status) => (400..500).contains(&status) || status == 501,
    }
}

/// Answers, put beside the keys that they answer: AWS sends them in an order of its own, and by ARN and name
/// whatever the spelling of the id.
struct Answers<'a> {
    keys: &'a [SecretKey],
    answers: BatchAnswer,
}

impl<'a> Answers<'a> {
    fn of(keys: &'a [SecretKey]) -> Self {
        Self { keys, answers: keys.iter().map(|_| None).collect() }
    }

    fn add_value(&mut self, entry: SecretValueEntry) {
        let (arn, name) = (entry.arn.clone().unwrap_or_default(), entry.name.clone().unwrap_or_default());
        let version = version(entry);
        self.put(|key| key.id.is_answered_by(&arn, &name), &version);
    }

    fn add_error(&mut self, error: &ApiErrorType) {
        let (Some(id), Some(code)) = (error.secret_id(), error.error_code()) else { return };
        // Not an HTTP status: what is unknown counts as a failure of the service.
        let meaning = classify_code(code, error.message(), 500, None);
        self.put(|key| key.id.as_str() == id, &Err(meaning));
    }

    /// For every key that it answers: two spellings of one secret may both have been asked for.
    fn put(&mut self, is_answered: impl Fn(&SecretKey) -> bool, answer: &Result<SecretVersion, SourceError>) {
        for (key, place) in self.keys.iter().zip(&mut self.answers) {
            if place.is_none() && is_answered(key) {
                *place = Some(answer.clone());
            }
        }
    }
}

fn version(entry: SecretValueEntry) -> Result<SecretVersion, SourceError> {
    super::version_of(
        entry.secret_string,
        entry.secret_binary,
        (entry.arn, entry.name, entry.version_id),
        entry.version_stages,
        entry.created_date,
    )
}
