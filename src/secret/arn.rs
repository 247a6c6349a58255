//! Amazon Resource Names of Secrets Manager, complete or cut off after `:secret:`.
//!
//! Grammar: `arn:<partition>:secretsmanager:<region>:<account>:secret:<name>`, where the partition is
//! `aws(-[a-z]+)*` and the account has twelve digits
//! (<https://docs.aws.amazon.com/service-authorization/latest/reference/list_awssecretsmanager.html>).

use thiserror::Error;

/// Why a text that starts with `arn:` is not an ARN of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ArnError {
    /// Fewer parts than an ARN has, or an empty one.
    #[error("an ARN has the form arn:<partition>:secretsmanager:<region>:<account>:secret:<name>")]
    Shape,
    /// The partition is not `aws`, `aws-cn`, `aws-us-gov` or the like.
    #[error("the ARN's partition must be aws or aws-<words>")]
    Partition,
    /// The ARN names something that is not a secret.
    #[error("the ARN is not one of a Secrets Manager secret")]
    Foreign,
    /// The region holds something else than lower-case letters, digits and hyphens.
    #[error("the ARN's region must be lower-case letters, digits and hyphens")]
    Region,
    /// The account is not twelve digits.
    #[error("the ARN's account must be 12 digits")]
    Account,
}

/// The parts of a secret's ARN, borrowed from its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arn<'a> {
    /// The region, such as `us-west-2`: safe to build a host name from.
    pub region: &'a str,
    /// What stands after `:secret:`; empty for an ARN prefix.
    pub name: &'a str,
    /// Whether the text ended in `:secret`, without the last colon.
    pub lacks_last_colon: bool,
}

/// The longest region that is accepted, in bytes. The longest that AWS has is 15.
const MAX_REGION: usize = 32;

impl<'a> Arn<'a> {
    /// Whether `text` claims to be an ARN at all; only then is [`Arn::parse`] meaningful.
    pub fn is_claimed_by(text: &str) -> bool {
        text.starts_with("arn:")
    }

    /// Takes an ARN, or an ARN prefix with or without its last colon, apart.
    ///
    /// The name is not checked here; [`SecretId`](super::SecretId) does that for names in all their forms.
    pub fn parse(text: &'a str) -> Result<Self, ArnError> {
        let mut parts = text.splitn(7, ':');
        let mut next = || parts.next().ok_or(ArnError::Shape);
        let (arn, partition, service) = (next()?, next()?, next()?);
        if arn != "arn" {
            return Err(ArnError::Shape);
        }
        if !is_partition(partition) {
            return Err(ArnError::Partition);
        }
        if service != "secretsmanager" {
            return Err(ArnError::Foreign);
        }
        let (region, account, kind) = (next()?, next()?, next()?);
        if !is_region(region) {
            return Err(ArnError::Region);
        }
        if account.len() != 12 || !account.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(ArnError::Account);
        }
        if kind != "secret" {
            return Err(ArnError::Foreign);
        }
        let name = parts.next();
        Ok(Self { region, name: name.unwrap_or(""), lacks_last_colon: name.is_none() })
    }
}

fn is_partition(text: &str) -> bool {
    let mut words = text.split('-');
    words.next() == Some("aws")
        && words.all(|word| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase()))
}

/// Whether it looks like a region: lower-case letters, digits and hyphens, safe to build a host name from.
pub fn is_region(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty()
        && text.len() <= MAX_REGION
        && text.bytes().all(legal)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// A complete ARN: one that ends in a hyphen and six random characters, which AWS puts behind a secret's name
/// (<https://docs.aws.amazon.com/secretsmanager/latest/userguide/whats-in-a-secret.html>). A name may end so itself: only
/// AWS knows whether an ARN is complete that looks like it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompleteArn<'a> {
    /// The secret's name.
    pub name: &'a str,
    /// The name and the random characters.
    pub resource: &'a str,
}

impl<'a> CompleteArn<'a> {
    /// Takes an ARN apart that looks complete.
    pub fn parse(text: &'a str) -> Option<Self> {
        let resource = Arn::parse(text).ok()?.name;
        let (name, random) = resource.rsplit_once('-')?;
        let is_random = random.len() == 6 && random.bytes().all(|byte| byte.is_ascii_alphanumeric());
        (is_random && !name.is_empty()).then_some(Self { name, resource })
    }
}

/// The partition of a region: the second part of all ARNs there, by the rules of the SDKs
/// (<https://github.com/aws/aws-sdk-rust/blob/main/sdk/sts/src/config/endpoint.rs> and its `partitions.json`).
pub fn partition_of(region: &str) -> &'static str {
    const PREFIXES: [(&str, &str); 7] = [
        ("cn-", "aws-cn"),
        ("us-gov-", "aws-us-gov"),
        ("us-iso-", "aws-iso"),
        ("us-isob-", "aws-iso-b"),
        ("eu-isoe-", "aws-iso-e"),
        ("us-isof-", "aws-iso-f"),
        ("eusc-", "aws-eusc"),
    ];
    PREFIXES.iter().find(|(prefix, _)| region.starts_with(prefix)).map_or("aws", |(_, partition)| partition)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_prefix_parses_with_and_without_its_last_colon() {
        let with = Arn::parse("arn:aws:secretsmanager:us-west-2:123456789012:secret:").unwrap();
        assert_eq!((with.region, with.name, with.lacks_last_colon), ("us-west-2", "", false));
        let without = Arn::parse("arn:aws:secretsmanager:us-west-2:123456789012:secret").unwrap();
        assert_eq!((without.region, without.name, without.lacks_last_colon), ("us-west-2", "", true));
    }

    #[test]
    fn every_partition_of_aws_is_accepted_and_look_alikes_are_not() {
        for partition in ["aws", "aws-cn", "aws-us-gov", "aws-iso-b"] {
            let text = format!("arn:{partition}:secretsmanager:r-1:123456789012:secret:x");
            assert!(Arn::parse(&text).is_ok(), "{partition}");
        }
        for partition in ["", "aw", "awsx", "aws-", "aws--cn", "AWS", "aws-CN", "aws-c1"] {
            let text = format!("arn:{partition}:secretsmanager:r-1:123456789012:secret:x");
            assert_eq!(Arn::parse(&text), Err(ArnError::Partition), "{partition}");
        }
    }

    #[test]
    fn each_broken_part_is_told_apart() {
        let cases = [
            ("arn:aws", ArnError::Shape),
            ("arn:aws:secretsmanager:us-west-2", ArnError::Shape),
            ("arn:aws:s3:::bucket", ArnError::Foreign),
            ("arn:aws:secretsmanager:us-west-2:123456789012:rotation:x", ArnError::Foreign),
            ("arn:aws:secretsmanager::123456789012:secret:x", ArnError::Region),
            ("arn:aws:secretsmanager:evil.example/:123456789012:secret:x", ArnError::Region),
            ("arn:aws:secretsmanager:us-west-2:12345678901:secret:x", ArnError::Account),
            ("arn:aws:secretsmanager:us-west-2:12345678901a:secret:x", ArnError::Account),
        ];
        for (text, expected) in cases {
            assert_eq!(Arn::parse(text), Err(expected), "{text}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_a_region_is_always_a_safe_host_label(text in ".{0,80}") {
            if let Ok(arn) = Arn::parse(&text) {
                prop_assert!(arn.region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
            }
        }

        #[test]
        fn a_well_formed_arn_gives_back_its_parts(
            region in "[a-z]{2}-[a-z]{4,9}-[1-9]", account in "[0-9]{12}", name in "[A-Za-z0-9/_+=.@-]{1,60}"
        ) {
            let text = format!("arn:aws:secretsmanager:{region}:{account}:secret:{name}");
            let arn = Arn::parse(&text).unwrap();
            prop_assert_eq!((arn.region, arn.name), (region.as_str(), name.as_str()));
        }
    }
}
