//! `DescribeSecret`: all that AWS says of a secret but its value. It needs a permission of its own, which the usual
//! policy does not grant (<https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_DescribeSecret.html>).

use aws_sdk_secretsmanager::operation::describe_secret::DescribeSecretOutput;
use aws_sdk_secretsmanager::primitives::DateTime;

use super::AwsSource;
use super::classify::classify;
use crate::secret::{
    DescribedTag, ReplicationStatus, RotationRules, SecretDescription, SecretKey, SecretVersion,
};
use crate::source::SourceError;

impl AwsSource {
    pub(super) async fn describe_secret(&self, key: &SecretKey) -> Result<SecretVersion, SourceError> {
        let place = self.clients.place(key);
        let client = self.clients.client_at(&place).await?;
        match client.describe_secret().secret_id(key.id.as_str()).send().await {
            Ok(output) => Ok(description(output)?.into_version()),
            Err(error) => Err(self.renewing(&place, classify(&error)).await),
        }
    }
}

fn description(output: DescribeSecretOutput) -> Result<SecretDescription, SourceError> {
    let (Some(arn), Some(name)) = (output.arn, output.name) else {
        return Err(SourceError::Unusable { reason: "it lacks ARN or Name" });
    };
    let seconds = |date: Option<DateTime>| date.map(|date| date.as_secs_f64());
    let rules = output.rotation_rules.map(|rules| RotationRules {
        automatically_after_days: rules.automatically_after_days,
        duration: rules.duration,
        schedule_expression: rules.schedule_expression,
    });
    let tags = output.tags.map(|tags| {
        let tag = |tag: aws_sdk_secretsmanager::types::Tag| DescribedTag {
            key: tag.key.unwrap_or_default(),
            value: tag.value.unwrap_or_default(),
        };
        tags.into_iter().map(tag).collect()
    });
    let replicas = output.replication_status.map(|replicas| {
        let replica = |replica: aws_sdk_secretsmanager::types::ReplicationStatusType| ReplicationStatus {
            region: replica.region,
            kms_key_id: replica.kms_key_id,
            status: replica.status.map(|status| status.as_str().to_owned()),
            status_message: replica.status_message,
            last_accessed_date: seconds(replica.last_accessed_date),
        };
        replicas.into_iter().map(replica).collect()
    });
    Ok(SecretDescription {
        arn,
        name,
        r#type: output.r#type,
        description: output.description,
        kms_key_id: output.kms_key_id,
        rotation_enabled: output.rotation_enabled,
        rotation_lambda_arn: output.rotation_lambda_arn,
        rotation_rules: rules,
        last_rotated_date: seconds(output.last_rotated_date),
        last_changed_date: seconds(output.last_changed_date),
        last_accessed_date: seconds(output.last_accessed_date),
        deleted_date: seconds(output.deleted_date),
        next_rotation_date: seconds(output.next_rotation_date),
        tags,
        version_ids_to_stages: output.version_ids_to_stages.unwrap_or_default().into_iter().collect(),
        owning_service: output.owning_service,
        created_date: seconds(output.created_date),
        primary_region: output.primary_region,
        replication_status: replicas,
    })
}
