//! `ListSecrets`: the names of the secrets that bear a tag. It needs a permission of its own
//! (<https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_ListSecrets.html>).

use aws_sdk_secretsmanager::types::{Filter, FilterNameStringType, SecretListEntry};

use super::AwsSource;
use super::classify::classify;
use crate::secret::SecretId;
use crate::source::{Page, SourceError, Tag};

impl AwsSource {
    /// One page of the secrets with this tag, in the default region and role.
    pub(super) async fn list_secrets(&self, tag: &Tag, from: Option<String>) -> Result<Page, SourceError> {
        let place = self.clients.default_place();
        let client = self.clients.client_at(&place).await?;
        let filter = |key, value: &str| Filter::builder().key(key).values(value).build();
        let by_value = tag.value.as_deref().map(|value| filter(FilterNameStringType::TagValue, value));
        let filters = [Some(filter(FilterNameStringType::TagKey, &tag.key)), by_value];
        let filters = Some(filters.into_iter().flatten().collect());
        let page = client.list_secrets().set_filters(filters).set_next_token(from).send().await;
        let page = match page {
            Ok(page) => page,
            Err(error) => return Err(self.renewing(&place, classify(&error)).await),
        };
        let found = page.secret_list().iter().filter(|entry| bears(entry, tag));
        Ok(Page {
            ids: found.filter_map(|entry| SecretId::parse(entry.name()?).ok()).collect(),
            next: page.next_token.filter(|token| !token.is_empty()),
        })
    }
}

/// The filters match beginnings, and a key and a value of different tags.
fn bears(entry: &SecretListEntry, tag: &Tag) -> bool {
    entry.tags().iter().any(|found| {
        found.key() == Some(&tag.key) && tag.value.as_deref().is_none_or(|value| found.value() == Some(value))
    })
}
