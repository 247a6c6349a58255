//! What is said of a request when it has been answered: metrics, and the audit trail.

use hyper::{Request, Response};
use tokio::time::Instant;

use super::SecretService;
use super::api::sdk;
use super::dialect::Dialect;
use super::problem::Problem;
use super::router::Route;
use super::visit::{Note, Notes, Visitor};
use crate::audit::{Audit, Event};
use crate::metrics::RouteMetrics;
use crate::net::Body;

/// One request, as far as there is something to be said of it when it has been answered.
pub(super) struct Record<'a> {
    service: &'a SecretService,
    metrics: &'a RouteMetrics,
    dialect: Dialect,
    is_read: bool,
    /// For the audit trail, where there is one.
    event: Option<Event>,
    pub(super) notes: Notes,
    pub(super) began: Instant,
}

impl<'a> Record<'a> {
    pub(super) fn begin<B>(
        service: &'a SecretService,
        request: &Request<B>,
        route: Route<'_>,
        visitor: &Visitor,
    ) -> Self {
        // What the audit trail says of the request, while that is still to be seen.
        let is_audited = !route.is_health() && service.shared.audit.is_on();
        Self {
            service,
            metrics: service.metrics_of(route, request.uri().query()),
            dialect: route.dialect(),
            is_read: !matches!(route, Route::Unmatched),
            event: is_audited.then(|| visitor.event(&service.label, request.headers())),
            notes: Notes::default(),
            began: Instant::now(),
        }
    }

    /// Reports and counts a request that was refused or answered, and gives the answer.
    pub(super) fn end(self, answer: Result<Response<Body>, Problem>) -> Response<Body> {
        match answer {
            Ok(response) => self.end_well(response),
            Err(problem) => {
                let refusal = Refusal { code: problem.code(), rejection: problem.rejection() };
                let response = problem.into_response(self.dialect);
                self.close(response, Some(refusal))
            }
        }
    }

    /// As [`Record::end`], for an answer.
    pub(super) fn end_well(self, response: Response<Body>) -> Response<Body> {
        self.close(response, None)
    }

    fn close(self, mut response: Response<Body>, refusal: Option<Refusal>) -> Response<Body> {
        let Self { service, metrics, .. } = self;
        let (notes, rejections) = self.notes.into_inner();
        let rejection = refusal.and_then(|refusal| refusal.rejection);
        for reason in rejections.into_iter().chain(rejection) {
            service.http.rejected(&service.label, reason);
        }
        let request_id = (self.dialect == Dialect::Aws).then(|| sdk::note_request_id(&mut response));
        if let Some(event) = self.event
            && (self.is_read || rejection.is_some())
        {
            let event = Event {
                surface: metrics.name(),
                status: response.status().as_u16(),
                request_id: request_id.map(Into::into).or(event.request_id),
                ..event
            };
            report(&service.shared.audit, &event, notes, refusal.map(|refusal| refusal.code));
        }
        metrics.answered(response.status().as_u16(), self.began.elapsed());
        response
    }
}

/// Why a request got no answer but a problem.
#[derive(Clone, Copy)]
struct Refusal {
    code: &'static str,
    /// If the daemon itself refused it: by which of its guards.
    rejection: Option<&'static str>,
}

/// A line of the audit trail for each secret that a request was about, and one for a request that came to none.
fn report(audit: &Audit, event: &Event, mut notes: Vec<Note>, refusal: Option<&'static str>) {
    match (refusal, notes.last_mut()) {
        (Some(code), None) => audit.record(Event { outcome: code, ..event.clone() }),
        // It was read, and then there was no such field.
        (Some(code), Some(note)) => note.outcome = code,
        (None, _) => {}
    }
    for note in notes {
        audit.record(Event {
            secret_id: Some(note.secret_id),
            version_id: note.version_id,
            outcome: note.outcome,
            age: note.age,
            ..event.clone()
        });
    }
}
