//! The native API: `GET /secret/<group>/<key>`.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH,
};
use hyper::{Request, Response, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::cache_status::note_source;
use super::metadata::{DateForm, Metadata};
use super::query::{self, QueryError};
use crate::cache::{Answer, Demand, Held};
use crate::net::{Body, wish_for};
use crate::secret::{Field, SecretPath, SecretVersion, VersionSelector};
use crate::server::Resolving;
use crate::server::guards::presented_token;
use crate::server::headers::{self, rendered};
use crate::server::problem::Problem;
use crate::server::visit::Visit;
use crate::units::{DURATION, parse_duration};

/// The longest that a reader may wait for another version: as long as Consul's blocking queries.
const MAX_WAIT: Duration = Duration::from_mins(10);

const TEXT: &str = "text/plain; charset=utf-8";
const BINARY: &str = "application/octet-stream";

/// What an entity tag may hold of a field's name as it is.
const ETAG_PLAIN: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'_').remove(b'-').remove(b'.').remove(b'/').remove(b'~');

/// Answers one read. `raw` is what follows `/secret/` in the path, not decoded.
pub(in crate::server) async fn read<B>(
    visit: &Visit<'_>,
    request: &Request<B>,
    raw: &str,
    waiting: &Semaphore,
) -> Result<Response<Body>, Problem> {
    let query = Query::parse(request.uri().query())?;
    let key = visit.shared.resolving.load().resolver.resolve(SecretPath::parse(raw)?, query.selector)?;
    let headers = request.headers();
    let demand = demand(headers);
    let field = query.field.as_ref();
    let Some(wait) = query.wait else {
        let answer = visit.read(&key, demand).await?;
        return render(visit, &answer, field, headers);
    };
    let until = Instant::now() + wait;
    let is_known = |held: &Held| is_known(headers, &etag(held, field));
    let answer = visit.read_changed(&key, demand, until, is_known, waiting, presented_token(headers)).await?;
    render(visit, &answer, field, headers)
}

/// Answers a read at once, as most are: one without demands of what is held. All others are [`read`]'s.
pub(in crate::server) fn read_held<B>(
    visit: &Visit<'_>,
    request: &Request<B>,
    raw: &str,
) -> Option<Response<Body>> {
    if !is_plain(request) {
        return None;
    }
    let Resolving { resolver, paths } = &**visit.shared.resolving.load();
    let known = paths.find(raw, |known| visit.read_held(&known.key, &known.place));
    let answer = known.or_else(|| {
        let key = resolver.resolve(SecretPath::parse(raw).ok()?, VersionSelector::current()).ok()?;
        let place = visit.shared.cache.place_of(&key)?;
        let answer = visit.read_held(&key, &place)?;
        paths.remember(raw, key, place);
        Some(answer)
    });
    answer.map(|answer| plain(&answer))
}

/// Whether nothing is asked for but the secret's value.
fn is_plain<B>(request: &Request<B>) -> bool {
    let asks = |(name, value): (&HeaderName, &HeaderValue)| {
        *name == CACHE_CONTROL || *name == IF_NONE_MATCH || (*name == ACCEPT && value != "*/*")
    };
    request.uri().query().is_none() && !request.headers().iter().any(asks)
}

/// Whether a read of this query may take long on purpose.
pub(in crate::server) fn waits(query: Option<&str>) -> bool {
    query.is_some_and(|query| query.split('&').any(|pair| pair.starts_with("wait=")))
}

/// What the reader asks of the cache.
fn demand(headers: &HeaderMap) -> Demand {
    let mut demand = Demand::default();
    for value in headers.get_all(CACHE_CONTROL) {
        // What is not ASCII holds no directive that is known.
        demand.add_cache_control(value.to_str().unwrap_or_default());
    }
    demand
}

/// The query parameters of a read.
#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    selector: VersionSelector,
    field: Option<Field>,
    wait: Option<Duration>,
}

impl Query {
    /// Every parameter must be known, given once, and have a value.
    fn parse(raw: Option<&str>) -> Result<Self, Problem> {
        let [stage, id, field, wait] =
            query::parse(raw, ["version_stage", "version_id", "field", "wait"]).map_err(wrong_query)?;
        let selector = VersionSelector::new(id.as_deref(), stage.as_deref()).map_err(|error| {
            let name = match error {
                crate::secret::VersionSelectorError::Id => "version_id",
                crate::secret::VersionSelectorError::Stage => "version_stage",
            };
            invalid_parameter(name, &error.to_string())
        })?;
        let parsed_field = |text: &str| {
            Field::parse(text).ok_or_else(|| {
                let accepted = "accepted are a top-level key, or a JSON Pointer that starts with /";
                invalid_parameter("field", accepted)
            })
        };
        let parsed_wait = |text: &str| {
            parse_duration(text)
                .filter(|wait| *wait <= MAX_WAIT)
                .ok_or_else(|| invalid_parameter("wait", &format!("accepted is {DURATION}, at most \"10m\"")))
        };
        Ok(Self {
            selector,
            field: field.as_deref().map(parsed_field).transpose()?,
            wait: wait.as_deref().map(parsed_wait).transpose()?,
        })
    }
}

fn wrong_query(error: QueryError) -> Problem {
    match error {
        QueryError::Unknown(name) => {
            let detail =
                format!("unknown parameter {name:?}; accepted are version_stage, version_id, field and wait");
            Problem::parameter("unknown_parameter", detail)
        }
        QueryError::Repeated(name) => {
            let detail = format!("the parameter {name} is given more than once");
            Problem::parameter("repeated_parameter", detail)
        }
        QueryError::Malformed(name, reason) => invalid_parameter(name, &reason),
    }
}

fn invalid_parameter(name: &str, reason: &str) -> Problem {
    Problem::parameter("invalid_parameter", format!("the parameter {name} is invalid: {reason}"))
}

/// The value, and nothing that only some ask for.
fn plain(answer: &Answer) -> Response<Body> {
    let value = &answer.held.version.value;
    let mut response = Response::new(Full::new(value.expose().clone()));
    *response.headers_mut() = headers::kept(answer, || {
        let mut fields = HeaderMap::new();
        let content_type = if value.is_text() { TEXT } else { BINARY };
        fields.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        fields.insert(ETAG, etag(&answer.held, None));
        note_source(&mut fields, answer);
        fields
    });
    response
}

fn render(
    visit: &Visit<'_>,
    answer: &Answer,
    field: Option<&Field>,
    asked: &HeaderMap,
) -> Result<Response<Body>, Problem> {
    let etag = etag(&answer.held, field);
    let mut response = if is_known(asked, &etag) {
        let mut response = Response::new(Body::default());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        let (body, content_type) = body(visit, &answer.held.version, field, asked)?;
        let mut response = Response::new(Full::new(body));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        response
    };
    response.headers_mut().insert(ETAG, etag);
    note_source(response.headers_mut(), answer);
    Ok(response)
}

/// The version id in quotes, with the field's name when one was asked for.
fn etag(held: &Held, field: Option<&Field>) -> HeaderValue {
    match field {
        None => HeaderValue::from_maybe_shared(held.etag.clone()).unwrap_or(HeaderValue::from_static("\"\"")),
        Some(field) => {
            let name = utf8_percent_encode(field.as_str(), ETAG_PLAIN);
            rendered(&format!("\"{}#{name}\"", held.version.version_id))
        }
    }
}

/// RFC 9110 section 13.1.2: whether the client has this already. The comparison is the weak one.
fn is_known(asked: &HeaderMap, etag: &HeaderValue) -> bool {
    asked.get_all(IF_NONE_MATCH).iter().any(|value| {
        value.as_bytes().split(|byte| *byte == b',').any(|tag| {
            let tag = tag.trim_ascii();
            tag == b"*" || tag.strip_prefix(b"W/").unwrap_or(tag) == etag.as_bytes()
        })
    })
}

fn body(
    visit: &Visit<'_>,
    version: &SecretVersion,
    field: Option<&Field>,
    asked: &HeaderMap,
) -> Result<(Bytes, &'static str), Problem> {
    let value = &version.value;
    let field = match field {
        Some(field) => Some(field.of(value.expose()).ok_or_else(Problem::field_not_found)?),
        None => None,
    };
    if wants_json(asked) {
        let metadata = Metadata::new(version, field.as_ref(), DateForm::Number);
        return Ok((visit.counted(metadata.render())?, "application/json"));
    }
    match field {
        Some(field) => Ok((field, TEXT)),
        None if value.is_text() => Ok((value.expose().clone(), TEXT)),
        None => Ok((value.expose().clone(), BINARY)),
    }
}

/// Whether `Accept` names JSON, and prefers nothing that the plain form would be.
fn wants_json(asked: &HeaderMap) -> bool {
    let json = wish_for("application/json", asked);
    json > 0.0
        && ["text/plain", "application/octet-stream"].iter().all(|plain| json >= wish_for(plain, asked))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_parameters_are_taken_once_each() {
        let raw = "version_stage=AWSPREVIOUS&version_id=v1&field=a+b%2B&wait=1m30s";
        let query = Query::parse(Some(raw)).unwrap();
        assert_eq!(query.wait, Some(Duration::from_secs(90)));
        assert_eq!(query.selector, VersionSelector::new(Some("v1"), Some("AWSPREVIOUS")).unwrap());
        assert_eq!(query.field, Field::parse("a+b+"));
        assert_eq!(Query::parse(None).unwrap(), Query::default());
        assert_eq!(Query::parse(Some("")).unwrap(), Query::default());
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        let cases = [
            ("versionStage=x", "unknown_parameter", "versionStage"),
            ("field=a&", "unknown_parameter", ""),
            ("field=a&field=a", "repeated_parameter", "field"),
            ("version_id=", "invalid_parameter", "version_id"),
            ("version_id", "invalid_parameter", "version_id"),
            ("version_stage=a%20b", "invalid_parameter", "version_stage"),
            ("field=", "invalid_parameter", "field"),
            ("field=/~", "invalid_parameter", "field"),
            ("field=%zz", "invalid_parameter", "field"),
            ("field=%ff", "invalid_parameter", "field"),
            ("wait=30", "invalid_parameter", "wait"),
            ("wait=11m", "invalid_parameter", "at most"),
        ];
        for (raw, code, name) in cases {
            let problem = Query::parse(Some(raw)).unwrap_err();
            assert_eq!((problem.status().as_u16(), problem.code()), (400, code), "{raw}");
            assert!(format!("{problem:?}").contains(name), "{raw}: {problem:?}");
        }
    }

    #[test]
    fn json_is_sent_to_those_who_prefer_it() {
        let wants = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_str(accept).unwrap());
            wants_json(&headers)
        };
        for accept in [
            "application/json",
            "Application/JSON",
            "application/json, text/plain, */*",
            "*/*, application/json;q=0.5",
        ] {
            assert!(wants(accept), "{accept}");
        }
        for accept in [
            "*/*",
            "text/plain",
            "application/json;q=0",
            "text/plain, application/json;q=0.9",
            "application/jsonx",
            "",
        ] {
            assert!(!wants(accept), "{accept}");
        }
        assert!(!wants_json(&HeaderMap::new()));
    }

    #[test]
    fn if_none_match_compares_weakly_and_knows_lists_and_stars() {
        let etag = HeaderValue::from_static("\"v1\"");
        let known = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(IF_NONE_MATCH, HeaderValue::from_str(value).unwrap());
            is_known(&headers, &etag)
        };
        for value in ["\"v1\"", "W/\"v1\"", "\"v0\", \"v1\"", "*"] {
            assert!(known(value), "{value}");
        }
        for value in ["\"v2\"", "v1", "", "\"v1"] {
            assert!(!known(value), "{value}");
        }
    }

    proptest! {
        #[test]
        fn parsing_a_query_never_panics(raw in ".{0,80}") {
            let _ = Query::parse(Some(&raw));
        }

        #[test]
        fn every_field_name_survives_the_query(name in "[^/].{0,20}") {
            let escaped = utf8_percent_encode(&name, NON_ALPHANUMERIC);
            let query = Query::parse(Some(&format!("field={escaped}"))).unwrap();
            prop_assert_eq!(query.field, Field::parse(&name));
        }
    }
}
