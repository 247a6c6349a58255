//! What every request must be before anything else looks at it.
//!
//! hyper accepts some messages that proxies and clients read differently (RFC 9112); those are refused
//! here, so that nobody can smuggle one request inside another or be misled about whom it is for.

use std::net::IpAddr;

use hyper::header::{
    AUTHORIZATION, CONTENT_LENGTH, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN,
    TRANSFER_ENCODING, VIA,
};
use hyper::http::uri::{Authority, Scheme};
use hyper::{Method, Request, Version};

use super::problem::Problem;

const TOKEN: HeaderName = HeaderName::from_static("x-aws-parameters-secrets-token");
/// The other header that AWS's agent takes a token from.
const VAULT_TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The longest path and query, in bytes: an id of 2,048 bytes may be escaped threefold.
const MAX_TARGET: usize = 8 << 10;

/// The guards of one listener.
#[derive(Debug)]
pub(super) struct Guards {
    /// On TCP, the host names that are accepted besides those of loopback; on a Unix socket the name means nothing.
    allowed_hosts: Option<Vec<String>>,
}

impl Guards {
    pub(super) fn new(allowed_hosts: Option<Vec<String>>) -> Self {
        Self { allowed_hosts }
    }

    /// Checks the message's form, that it came neither by way of a proxy nor from a web page, and on TCP that it came
    /// under no foreign name (DNS rebinding).
    pub(super) fn check<B: hyper::body::Body>(&self, request: &Request<B>) -> Result<(), Problem> {
        let seen = Seen::of(request.headers());
        if seen.codings > 0 && seen.lengths > 0 {
            return Err(
                Problem::malformed("Content-Length and Transfer-Encoding exclude each other").closing()
            );
        }
        // hyper looks at the last coding only, and would hand on a body that another one still covers.
        if seen.codings > usize::from(seen.is_chunked) {
            return Err(Problem::malformed("the only Transfer-Encoding that is known is chunked").closing());
        }
        // A method that may have a body is refused for itself.
        if matches!(*request.method(), Method::GET | Method::HEAD) && !request.body().is_end_stream() {
            return Err(Problem::unexpected_body().closing());
        }
        let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
        if target > MAX_TARGET {
            return Err(Problem::target_too_long(MAX_TARGET));
        }
        if request.uri().scheme().is_some_and(|scheme| *scheme != Scheme::HTTP) {
            return Err(Problem::malformed("the target's scheme must be http"));
        }
        let mut host = seen.one_host(request.version())?;
        if let Some(authority) = request.uri().authority() {
            let authority = HostAndPort::parse(authority.as_str().as_bytes());
            let is_same = |authority: &HostAndPort<'_>| host.is_none_or(|host| host.is_same(authority));
            let Some(authority) = authority.filter(is_same) else {
                return Err(Problem::malformed("the target's authority and the Host header differ"));
            };
            host = Some(authority);
        }
        if seen.forwarders > 0 {
            return Err(Problem::forwarded());
        }
        if seen.origins > 0 {
            return Err(Problem::foreign_origin());
        }
        // A request of HTTP/1.0 may lack the header; browsers, which rebinding needs, always send it.
        let is_ours =
            |allowed: &[String]| host.is_none_or(|host| host.is_loopback() || host.is_listed(allowed));
        if self.allowed_hosts.as_deref().is_none_or(is_ours) { Ok(()) } else { Err(Problem::foreign_host()) }
    }
}

/// The header fields that are looked at, found in one pass over all.
#[derive(Debug, Default)]
struct Seen<'a> {
    host: Option<&'a HeaderValue>,
    hosts: usize,
    codings: usize,
    /// The first coding is `chunked`.
    is_chunked: bool,
    lengths: usize,
    origins: usize,
    forwarders: usize,
}

impl<'a> Seen<'a> {
    fn of(headers: &'a HeaderMap) -> Self {
        let mut seen = Self::default();
        for (name, value) in headers {
            if *name == HOST {
                seen.hosts += 1;
                seen.host = seen.host.or(Some(value));
            } else if *name == TRANSFER_ENCODING {
                let is_chunked = value.as_bytes().eq_ignore_ascii_case(b"chunked");
                seen.is_chunked |= seen.codings == 0 && is_chunked;
                seen.codings += 1;
            } else if *name == CONTENT_LENGTH {
                seen.lengths += 1;
            } else if *name == ORIGIN {
                seen.origins += 1;
            } else if *name == FORWARDED || *name == VIA || *name == X_FORWARDED_FOR {
                seen.forwarders += 1;
            }
        }
        seen
    }

    /// RFC 9112 section 3.2: exactly one Host in HTTP/1.1, at most one before.
    fn one_host(&self, version: Version) -> Result<Option<HostAndPort<'a>>, Problem> {
        if self.hosts > 1 {
            return Err(Problem::malformed("there is more than one Host header"));
        }
        match self.host {
            None if version >= Version::HTTP_11 => Err(Problem::malformed("the Host header is missing")),
            None => Ok(None),
            // An empty Host is legal where the target has no authority, and what some Unix-socket clients send.
            Some(host) if host.is_empty() => Ok(None),
            Some(host) => HostAndPort::parse(host.as_bytes())
                .map(Some)
                .ok_or_else(|| Problem::malformed("the Host header is malformed")),
        }
    }
}

/// RFC 9110 section 7.2: no user, and a port of digits if any.
#[derive(Debug, Clone, Copy)]
struct HostAndPort<'a> {
    whole: &'a [u8],
    name: &'a [u8],
}

impl<'a> HostAndPort<'a> {
    fn parse(whole: &'a [u8]) -> Option<Self> {
        let is_usual = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(*byte, b'.' | b'-');
        let is_port = |rest: &[u8]| match rest {
            [] => true,
            [b':', port @ ..] => port.iter().all(u8::is_ascii_digit),
            _ => false,
        };
        let (name, rest) = whole.split_at(whole.iter().take_while(|byte| is_usual(byte)).count());
        if !name.is_empty() && is_port(rest) {
            return Some(Self { whole, name });
        }
        // An address of IPv6, or what is seldom seen.
        let authority = Authority::try_from(whole).ok()?;
        let (name, rest) = whole.split_at_checked(authority.host().len())?;
        (name == authority.host().as_bytes() && is_port(rest)).then_some(Self { whole, name })
    }

    fn is_same(&self, other: &HostAndPort<'_>) -> bool {
        self.whole.eq_ignore_ascii_case(other.whole)
    }

    fn is_listed(&self, allowed: &[String]) -> bool {
        allowed
            .iter()
            .map(String::as_bytes)
            .any(|name| name.eq_ignore_ascii_case(self.name) || name.eq_ignore_ascii_case(self.whole))
    }

    fn is_loopback(&self) -> bool {
        let bare = self.name.strip_prefix(b"[").and_then(|name| name.strip_suffix(b"]")).unwrap_or(self.name);
        let is_address = |text: &str| text.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        bare.eq_ignore_ascii_case(b"localhost") || std::str::from_utf8(bare).is_ok_and(is_address)
    }
}

/// 405 unless the method is among `allowed`.
pub(super) fn check_method<B>(request: &Request<B>, allowed: &'static [Method]) -> Result<(), Problem> {
    if allowed.contains(request.method()) { Ok(()) } else { Err(Problem::method_not_allowed(allowed)) }
}

/// The token that a caller presents: AWS's agent's headers, else a bearer token (RFC 6750 section 2.1), else the
/// access key id by which an AWS SDK has signed the request.
pub(super) fn presented_token(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(token) = headers.get(TOKEN).or_else(|| headers.get(VAULT_TOKEN)) {
        return Some(token.as_bytes());
    }
    let authorization = headers.get(AUTHORIZATION)?.as_bytes();
    if let Some((scheme, token)) = authorization.split_at_checked("Bearer ".len())
        && scheme.eq_ignore_ascii_case(b"bearer ")
    {
        return Some(token.trim_ascii());
    }
    credential_scope(headers)?.next()
}

/// The region for which an AWS SDK has signed the request.
pub(super) fn signing_region(headers: &HeaderMap) -> Option<&str> {
    std::str::from_utf8(credential_scope(headers)?.nth(2)?).ok()
}

/// The parts of `Credential` in a signature of version 4: access key id, date, region, service, `aws4_request`
/// (<https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html>).
fn credential_scope(headers: &HeaderMap) -> Option<impl Iterator<Item = &[u8]>> {
    let authorization = headers.get(AUTHORIZATION)?.as_bytes().strip_prefix(b"AWS4-")?;
    let parameters = &authorization[authorization.iter().position(|byte| *byte == b' ')?..];
    let mut parameters = parameters.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    let scope = parameters.find_map(|parameter| parameter.strip_prefix(b"Credential="))?;
    Some(scope.split(|byte| *byte == b'/'))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{Empty, Full};

    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request<Empty<Bytes>> {
        let mut request = Request::get("/secret/a/b");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Empty::new()).unwrap()
    }

    fn status(guards: &Guards, headers: &[(&str, &str)]) -> u16 {
        guards.check(&request(headers)).map_or_else(|problem| problem.status().as_u16(), |()| 200)
    }

    #[test]
    fn tcp_wants_a_loopback_or_listed_host() {
        let tcp = Guards::new(Some(vec!["cache.internal".to_owned()]));
        for host in
            ["localhost", "LOCALHOST:2773", "127.0.0.1:2773", "127.1.2.3", "[::1]:80", "cache.internal:2773"]
        {
            assert_eq!(status(&tcp, &[("host", host)]), 200, "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "10.0.0.1", "[::2]", "127.0.0.1.nip.io"] {
            assert_eq!(status(&tcp, &[("host", host)]), 403, "{host}");
        }
        assert_eq!(status(&Guards::new(None), &[("host", "anything")]), 200);
    }

    #[test]
    fn a_request_has_exactly_one_well_formed_host() {
        let unix = Guards::new(None);
        assert_eq!(status(&unix, &[]), 400);
        assert_eq!(status(&unix, &[("host", "a"), ("host", "a")]), 400);
        for host in
            ["a b", "user@localhost", "localhost@localhost", "localhost:http", "localhost:1:2", "[::1]x"]
        {
            assert_eq!(status(&unix, &[("host", host)]), 400, "{host}");
        }
        for host in ["localhost:", "[::1]:80", "a.b:65536"] {
            assert_eq!(status(&unix, &[("host", host)]), 200, "{host}");
        }
        assert_eq!(status(&unix, &[("host", "")]), 200);
    }

    #[test]
    fn what_came_through_a_proxy_or_from_a_web_page_is_refused() {
        for guards in [Guards::new(Some(vec![])), Guards::new(None)] {
            for (name, expected) in
                [("x-forwarded-for", 400), ("forwarded", 400), ("via", 400), ("origin", 403)]
            {
                for value in ["x", "", "null", "http://localhost"] {
                    assert_eq!(status(&guards, &[("host", "localhost"), (name, value)]), expected, "{name}");
                }
            }
        }
    }

    #[test]
    fn a_body_is_not_accepted_and_ambiguous_framing_is_malformed() {
        let guards = Guards::new(None);
        let body = Request::get("/").header("host", "a").body(Full::new(Bytes::from_static(b"x"))).unwrap();
        assert_eq!(guards.check(&body).unwrap_err().status().as_u16(), 413);
        let both = [("host", "a"), ("content-length", "0"), ("transfer-encoding", "chunked")];
        assert_eq!(status(&guards, &both), 400);
        for coding in ["gzip, chunked", "chunked, chunked", "identity", "xchunked", ""] {
            assert_eq!(status(&guards, &[("host", "a"), ("transfer-encoding", coding)]), 400, "{coding}");
        }
        let twice = [("host", "a"), ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")];
        assert_eq!(status(&guards, &twice), 400);
    }

    #[test]
    fn the_authority_of_an_absolute_target_must_be_the_host() {
        let guards = Guards::new(Some(vec![]));
        let absolute = |target: &str, host: &str| {
            let request = Request::get(target).header("host", host).body(Empty::<Bytes>::new()).unwrap();
            guards.check(&request).map_or_else(|problem| problem.status().as_u16(), |()| 200)
        };
        let cases = [
            ("http://localhost/secret/a/b", "localhost", 200),
            ("http://localhost/secret/a/b", "127.0.0.1", 400),
            ("http://localhost/secret/a/b", "", 200),
            ("http://evil.example/secret/a/b", "", 403),
            ("http://user@localhost/secret/a/b", "", 400),
            ("https://localhost/secret/a/b", "localhost", 400),
        ];
        for (target, host, expected) in cases {
            assert_eq!(absolute(target, host), expected, "{target} {host:?}");
        }
    }

    #[test]
    fn a_signature_carries_a_token_and_a_region() {
        let scope = "Credential=the-token/20260101/eu-west-1/secretsmanager/aws4_request";
        for signature in [
            format!("AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0"),
            format!("AWS4-HMAC-SHA256 SignedHeaders=host,{scope},Signature=0"),
            format!("AWS4-ECDSA-P256-SHA256 {scope}"),
        ] {
            let request = request(&[("authorization", &signature)]);
            assert_eq!(presented_token(request.headers()), Some(&b"the-token"[..]), "{signature}");
            assert_eq!(signing_region(request.headers()), Some("eu-west-1"), "{signature}");
        }
        for signature in ["AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256 Credential", "AWS4-", "AWS3 Credential=x/y"] {
            let request = request(&[("authorization", signature)]);
            assert_eq!(presented_token(request.headers()), None, "{signature}");
            assert_eq!(signing_region(request.headers()), None, "{signature}");
        }
    }

    #[test]
    fn a_token_is_found_in_either_header() {
        let token =
            |headers: &[(&str, &str)]| presented_token(request(headers).headers()).map(<[u8]>::to_vec);
        assert_eq!(token(&[("x-aws-parameters-secrets-token", "t")]), Some(b"t".to_vec()));
        assert_eq!(token(&[("authorization", "bearer  t ")]), Some(b"t".to_vec()));
        assert_eq!(token(&[("x-vault-token", "t")]), Some(b"t".to_vec()));
        assert_eq!(token(&[("authorization", "Basic t")]), None);
        assert_eq!(token(&[("authorization", "Bear")]), None);
        assert_eq!(token(&[]), None);
    }
}
