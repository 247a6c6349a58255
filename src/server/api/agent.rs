//! The API of AWS's agent, and so of the Lambda extension: `GET /secretsmanager/get?secretId=..` and
//! `GET /v1/<secretId>` (<https://docs.aws.amazon.com/secretsmanager/latest/userguide/secrets-manager-agent.html>).
//!
//! Where it differs from that agent on purpose, `docs/clients/agent.md` says how and why.

use std::time::Duration;

use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response};

use super::cache_status::note_source;
use super::metadata::{DateForm, Metadata};
use super::query::{self, QueryError};
use crate::cache::Demand;
use crate::net::Body;
use crate::secret::{Origin, ReferenceError, SecretId, VersionSelector, percent_decode};
use crate::server::problem::Problem;
use crate::server::visit::Visit;

/// Answers one read. `path` is what follows `/v1/`, not decoded; without it, the id is a parameter.
pub(in crate::server) async fn read<B>(
    visit: &Visit<'_>,
    request: &Request<B>,
    path: Option<&str>,
) -> Result<Response<Body>, Problem> {
    let query = Query::parse(path, request.uri().query())?;
    let role_arn = query.role_arn.as_deref();
    if let Some(role_arn) = role_arn {
        visit.may_assume(role_arn)?;
    }
    let origin = Origin { region: None, role_arn: role_arn.map(Into::into) };
    let key = visit.shared.resolving.load().resolver.resolve_id(query.id, origin, query.selector)?;
    // As that agent does, what is held is served where asking anew fails; and where it is asked for too often.
    let stale_if_error = query.refresh_now.then_some(Duration::MAX);
    let demand = Demand { no_cache: query.refresh_now, stale_if_error, ..Demand::default() };
    let answer = visit.read(&key, demand).await?;
    let body = visit.counted(Metadata::new(&answer.held.version, None, DateForm::Text).render())?;
    let mut response = Response::new(Full::new(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    note_source(response.headers_mut(), &answer);
    Ok(response)
}

/// The parameters of a read.
#[derive(Debug, PartialEq, Eq)]
struct Query {
    id: SecretId,
    selector: VersionSelector,
    refresh_now: bool,
    role_arn: Option<String>,
}

impl Query {
    fn parse(path: Option<&str>, raw: Option<&str>) -> Result<Self, Problem> {
        let (id, [version_id, stage, refresh_now, role_arn]) = match path {
            Some(raw_id) => {
                let parameters = ["versionId", "versionStage", "refreshNow", "roleArn"];
                (id_of_path(raw_id)?, query::parse(raw, parameters).map_err(wrong_query)?)
            }
            None => {
                let parameters = ["secretId", "versionId", "versionStage", "refreshNow", "roleArn"];
                let [id, rest @ ..] = query::parse(raw, parameters).map_err(wrong_query)?;
                let id = id.filter(|id| !id.is_empty());
                let missing =
                    || Problem::parameter("missing_parameter", "missing parameter secretId".to_owned());
                (SecretId::parse(&id.ok_or_else(missing)?)?, rest)
            }
        };
        let refresh_now = match refresh_now.map(|value| value.to_ascii_lowercase()).as_deref() {
            None | Some("false" | "0") => false,
            Some("true" | "1") => true,
            Some(_) => return Err(invalid("invalid refreshNow value".to_owned())),
        };
        let selector = VersionSelector::new(version_id.as_deref(), stage.as_deref())
            .map_err(|error| Problem::parameter("invalid_version", error.to_string()))?;
        Ok(Self { id, selector, refresh_now, role_arn: role_arn.map(std::borrow::Cow::into_owned) })
    }
}

/// Nothing is folded: a dot segment is refused, since proxies and clients differ in what they make of it.
fn id_of_path(raw: &str) -> Result<SecretId, Problem> {
    if raw.is_empty() {
        return Err(Problem::parameter("missing_parameter", "missing secret ID".to_owned()));
    }
    let id = percent_decode(raw)?;
    if raw.split('/').any(|segment| matches!(segment, "." | ".."))
        || id.split('/').any(|part| matches!(part, "." | ".."))
    {
        return Err(ReferenceError::DotSegment.into());
    }
    Ok(SecretId::parse(&id)?)
}

fn wrong_query(error: QueryError) -> Problem {
    match error {
        QueryError::Unknown(name) => {
            Problem::parameter("unknown_parameter", format!("unknown parameter: {name}"))
        }
        QueryError::Repeated(name) => {
            Problem::parameter("repeated_parameter", format!("repeated parameter: {name}"))
        }
        QueryError::Malformed(name, reason) => invalid(format!("invalid {name} value: {reason}")),
    }
}

fn invalid(detail: String) -> Problem {
    Problem::parameter("invalid_parameter", detail)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROLE: &str = "arn:aws:iam::123456789012:role/reader";

    #[test]
    fn both_forms_take_the_same_parameters() {
        let rest = format!("versionId=v1&versionStage=AWSPREVIOUS&refreshNow=TRUE&roleArn={ROLE}");
        let expected = || Query {
            id: SecretId::parse("a/b+c").unwrap(),
            selector: VersionSelector::new(Some("v1"), Some("AWSPREVIOUS")).unwrap(),
            refresh_now: true,
            role_arn: Some(ROLE.to_owned()),
        };
        assert_eq!(Query::parse(None, Some(&format!("secretId=a%2Fb+c&{rest}"))).unwrap(), expected());
        assert_eq!(Query::parse(Some("a/b+c"), Some(&rest)).unwrap(), expected());
        let plain = Query::parse(Some("a%2Fb%2Bc"), None).unwrap();
        assert_eq!((plain.id.as_str(), plain.refresh_now, plain.role_arn), ("a/b+c", false, None));
    }

    #[test]
    fn errors_have_the_texts_of_that_agent() {
        let cases = [
            (None, "", "missing parameter secretId"),
            (None, "secretId=", "missing parameter secretId"),
            (None, "secretId=a&abc=1", "unknown parameter: abc"),
            (None, "secretId=a&refreshNow=2", "invalid refreshNow value"),
            (None, "secretId=a&secretId=b", "repeated parameter: secretId"),
            (Some("a"), "secretId=a", "unknown parameter: secretId"),
            (Some(""), "", "missing secret ID"),
            (Some("a/../b"), "", "dot segments are refused"),
            (Some("a/%2e%2e/b"), "", "dot segments are refused"),
            (Some("a%20b"), "", "byte 0x20"),
        ];
        for (path, query, expected) in cases {
            let problem = Query::parse(path, Some(query)).unwrap_err();
            assert!(format!("{problem:?}").contains(expected), "{path:?} {query}: {problem:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(path in proptest::option::of(".{0,60}"), query in ".{0,80}") {
            let _ = Query::parse(path.as_deref(), Some(&query));
        }
    }
}
