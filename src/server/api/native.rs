//! The native API: `GET /secret/<group>/<key>`.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ACCEPT, AGE, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH,
};
use hyper::{Request, Response, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use zeroize::Zeroizing;

use super::field::Field;
use crate::access::Gate;
use crate::cache::{Answer, Demand, Forward, ReadError, Served};
use crate::net::Body;
use crate::secret::{SecretPath, SecretVersion, VersionSelector, percent_decode};
use crate::server::Shared;
use crate::server::headers::{HitHeaders, rendered};
use crate::server::problem::Problem;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// What an entity tag may hold of a field's name as it is.
const ETAG_PLAIN: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'_').remove(b'-').remove(b'.').remove(b'/').remove(b'~');

/// Answers one read. `raw` is what follows `/secret/` in the path, not decoded.
pub(in crate::server) async fn read<B>(
    shared: &Shared,
    gate: &Gate,
    request: &Request<B>,
    raw: &str,
) -> Result<Response<Body>, Problem> {
    let query = Query::parse(request.uri().query())?;
    let key = shared.resolver.load().resolve(SecretPath::parse(raw)?, query.selector)?;
    gate.may_read(&key)?;
    let headers = request.headers();
    let demand = demand(headers);
    let answer = shared.cache.read(&key, &demand).await.map_err(|error| {
        let status = failed_status(&error);
        Problem::from(error).cache_status(status)
    })?;
    render(&shared.hit_headers, &answer, query.field.as_ref(), headers)
}

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
}

impl Query {
    /// Every parameter must be known, given once, and have a value.
    fn parse(raw: Option<&str>) -> Result<Self, Problem> {
        let Some(raw) = raw.filter(|raw| !raw.is_empty()) else { return Ok(Self::default()) };
        let (mut stage, mut id, mut field) = (None, None, None);
        for pair in raw.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let place = match name {
                "version_stage" => &mut stage,
                "version_id" => &mut id,
                "field" => &mut field,
                unknown => return Err(unknown_parameter(unknown)),
            };
            let value = percent_decode(value).map_err(|error| invalid_parameter(name, &error.to_string()))?;
            if place.replace(value).is_some() {
                let detail = format!("the parameter {name} is given more than once");
                return Err(Problem::parameter("repeated_parameter", detail));
            }
        }
        let selector = VersionSelector::new(id.as_deref(), stage.as_deref()).map_err(|error| {
            let name = match error {
                crate::secret::VersionSelectorError::Id => "version_id",
                crate::secret::VersionSelectorError::Stage => "version_stage",
            };
            invalid_parameter(name, &error.to_string())
        })?;
        let field = match field {
            Some(text) => Some(Field::parse(&text).ok_or_else(|| {
                invalid_parameter(
                    "field",
                    "accepted are a top-level key, or a JSON Pointer that starts with /",
                )
            })?),
            None => None,
        };
        Ok(Self { selector, field })
    }
}

fn unknown_parameter(name: &str) -> Problem {
    let name: String = name.chars().take(64).collect();
    let detail = format!("unknown parameter {name:?}; accepted are version_stage, version_id and field");
    Problem::parameter("unknown_parameter", detail)
}

fn invalid_parameter(name: &str, reason: &str) -> Problem {
    Problem::parameter("invalid_parameter", format!("the parameter {name} is invalid: {reason}"))
}

fn render(
    hit_headers: &HitHeaders,
    answer: &Answer,
    field: Option<&Field>,
    asked: &HeaderMap,
) -> Result<Response<Body>, Problem> {
    let etag = etag(answer, field);
    let mut response = if is_known(asked, &etag) {
        let mut response = Response::new(Body::default());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        let (body, content_type) = body(&answer.held.version, field, asked)?;
        let mut response = Response::new(Full::new(body));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        response
    };
    let headers = response.headers_mut();
    headers.insert(ETAG, etag);
    headers.insert(AGE, hit_headers.age(answer.age.as_secs()));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CACHE_STATUS, cache_status(hit_headers, answer));
    Ok(response)
}

/// The version id in quotes, with the field's name when one was asked for.
fn etag(answer: &Answer, field: Option<&Field>) -> HeaderValue {
    match field {
        None => HeaderValue::from_maybe_shared(answer.held.etag.clone())
            .unwrap_or(HeaderValue::from_static("\"\"")),
        Some(field) => {
            let name = utf8_percent_encode(field.as_str(), ETAG_PLAIN);
            rendered(&format!("\"{}#{name}\"", answer.held.version.version_id))
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
    version: &SecretVersion,
    field: Option<&Field>,
    asked: &HeaderMap,
) -> Result<(Bytes, &'static str), Problem> {
    const TEXT: &str = "text/plain; charset=utf-8";
    let value = &version.value;
    let field = match field {
        Some(field) => Some(field.of(value.expose()).ok_or_else(Problem::field_not_found)?),
        None => None,
    };
    if wants_json(asked) {
        return Ok((json(version, field.as_ref()), "application/json"));
    }
    match field {
        Some(field) => Ok((field, TEXT)),
        None if value.is_text() => Ok((value.expose().clone(), TEXT)),
        None => Ok((value.expose().clone(), "application/octet-stream")),
    }
}

/// Whether `Accept` names JSON, and prefers nothing that the plain form would be.
fn wants_json(asked: &HeaderMap) -> bool {
    let mut json = 0.0_f32;
    let mut plain = 0.0_f32;
    for value in asked.get_all(ACCEPT) {
        for range in value.to_str().unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let weighed = match parts.next().unwrap_or_default() {
                name if name.eq_ignore_ascii_case("application/json") => &mut json,
                name if name.eq_ignore_ascii_case("text/plain") => &mut plain,
                name if name.eq_ignore_ascii_case("application/octet-stream") => &mut plain,
                _ => continue,
            };
            let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            *weighed = weighed.max(weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0)));
        }
    }
    json > 0.0 && json >= plain
}

/// The metadata form, with AWS's own names and types
/// (<https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_GetSecretValue.html>).
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Metadata<'a> {
    #[serde(rename = "ARN")]
    arn: &'a str,
    name: &'a str,
    version_id: &'a str,
    version_stages: &'a [String],
    /// Seconds since 1970, as in AWS JSON 1.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    created_date: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_string: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_binary: Option<&'a str>,
}

fn json(version: &SecretVersion, field: Option<&Bytes>) -> Bytes {
    use base64::Engine;
    let exposed = field.unwrap_or_else(|| version.value.expose());
    let text = std::str::from_utf8(exposed).ok().filter(|_| field.is_some() || version.value.is_text());
    let binary = match text {
        Some(_) => None,
        None => Some(Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(exposed))),
    };
    let created = version.created_date.and_then(|date| date.duration_since(std::time::UNIX_EPOCH).ok());
    let metadata = Metadata {
        arn: &version.arn,
        name: &version.name,
        version_id: &version.version_id,
        version_stages: &version.version_stages,
        created_date: created.map(|since| since.as_secs_f64()),
        secret_string: text,
        secret_binary: binary.as_ref().map(|binary| binary.as_str()),
    };
    // Room for all of it at once: a buffer that grows leaves copies of the secret behind.
    let escapes = exposed.iter().filter(|byte| **byte < 0x20 || matches!(**byte, b'"' | b'\\')).count();
    let room = exposed.len() * 4 / 3 + escapes * 5 + version.weight() - version.value.len() + 512;
    let mut rendered = Zeroizing::new(Vec::with_capacity(room));
    // Strings and numbers always serialize into memory.
    let _ = serde_json::to_writer(&mut *rendered, &metadata);
    Bytes::from_owner(rendered)
}

/// How the answer came about (RFC 9211). `ttl` and `Age` add up to the entry's whole lifetime.
fn cache_status(hit_headers: &HitHeaders, answer: &Answer) -> HeaderValue {
    let (ttl, age) = (answer.held.policy.lifetimes.ttl.as_secs(), answer.age.as_secs());
    let detail = match answer.served {
        Served::Hit => return hit_headers.fresh_hit(ttl.saturating_sub(age)),
        Served::StaleWhileRevalidate => "stale-while-revalidate",
        Served::StaleIfError => "stale-if-error",
        Served::Fetched { forward, collapsed } => {
            let reason = match forward {
                Forward::Miss => "miss",
                Forward::Stale => "stale",
                Forward::Request => "request",
            };
            let collapsed = if collapsed { "; collapsed" } else { "" };
            return rendered(&format!("smcached; fwd={reason}; stored{collapsed}"));
        }
    };
    let sign = if age > ttl { "-" } else { "" };
    rendered(&format!("smcached; hit; ttl={sign}{}; detail={detail}", age.abs_diff(ttl)))
}

/// The `Cache-Status` of a read that failed.
fn failed_status(error: &ReadError) -> HeaderValue {
    match error {
        ReadError::NotHeld => HeaderValue::from_static("smcached; detail=only-if-cached"),
        ReadError::ForcedTooOften { .. } => {
            HeaderValue::from_static("smcached; detail=forced-refresh-limited")
        }
        ReadError::Source { remembered_for: Some(left), .. } => {
            rendered(&format!("smcached; hit; ttl={}; detail=negative", left.as_secs()))
        }
        ReadError::Source { error, remembered_for: None } => {
            rendered(&format!("smcached; fwd=miss; detail={}", error.kind()))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_parameters_are_taken_once_each() {
        let query = Query::parse(Some("version_stage=AWSPREVIOUS&version_id=v1&field=a+b%2B")).unwrap();
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
