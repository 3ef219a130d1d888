//! Shares the server's places fairly among peers, for each kind of request.
//!
//! ```text
//!            no whole request yet, or between two            a whole request
//! accept ──▶ Arrivals ──── /healthz /readyz /pool/… ──▶ answered there and then: no place is needed
//!               ▲   ├───── /metrics ──────────────────▶ Scrapes ─┐
//!               │   ├───── /api/v1/events ────────────▶ Streams ─┤ until the answer is written
//!               │   └───── all else ──────────────────▶ Pages ───┤
//!               └────────────────────────────────────────────────┘
//! ```
//! Answers that need a place are computed on a second thread, and the thread of the connections passes them on: no
//! number of pages delays an answer to a probe. Each kind has its own [`Crowd`], so one kind of request never takes a
//! place of another; requests of load balancers and probes need no place. A connection without a whole request can lose
//! its place at any time: an honest client sends its request with the connection.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    http::{StatusCode, header},
    response::IntoResponse as _,
};
use hyper::{
    Request, Response,
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    service::Service,
};
use hyper_util::service::TowerToHyperService;
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore, mpsc, oneshot},
    task::yield_now,
};

use super::{events, metrics::WebMetrics};
use crate::{crowd::Crowd, host::peer::Peer};

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It has not sent a whole request since it came, or since its last answer.
    Arrival,
    /// It gets `/metrics`, which may be tens of megabytes.
    Scrape,
    /// It follows `/api/v1/events`, for as long as it likes.
    Stream,
    /// It gets a page or JSON.
    Page,
}

/// Number of places of each kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rooms {
    pub(super) arrivals: usize,
    pub(super) scrapes: usize,
    pub(super) streams: usize,
    pub(super) pages: usize,
}

/// When no place is left, an answer that took longer than this may be ended for a new request.
const SLOW: Duration = Duration::from_secs(1);
/// TLS handshakes of one peer at a time: each costs the one thread of this server up to a millisecond.
const HANDSHAKES: usize = 4;

impl Rooms {
    /// For an agent with a limit of `descriptors`, of which it needs a hundred itself. An arrival holds some 20 KiB,
    /// over TLS 50.
    pub(super) fn of(descriptors: u64) -> Self {
        let arrivals = usize::try_from(descriptors / 2).unwrap_or(usize::MAX).clamp(32, 256);
        Self { arrivals, scrapes: 8, streams: events::STREAMS, pages: 32 }
    }
}

/// The place that a request needs; `None`: none, since the answer comes from memory and has a few hundred bytes.
fn kind_of(path: &str) -> Option<Kind> {
    match path {
        "/healthz" | "/readyz" => None,
        "/metrics" => Some(Kind::Scrape),
        "/api/v1/events" => Some(Kind::Stream),
        _ if path.starts_with("/pool/") => None,
        _ => Some(Kind::Page),
    }
}

/// All places of a server.
#[derive(Debug)]
pub(super) struct Places {
    crowds: Mutex<Crowds>,
    began: Instant,
    pub(super) metrics: WebMetrics,
}

#[derive(Debug)]
struct Crowds {
    arrivals: Crowd<Peer, Arc<Notify>>,
    scrapes: Crowd<Peer, Arc<Notify>>,
    streams: Crowd<Peer, Arc<Notify>>,
    pages: Crowd<Peer, Arc<Notify>>,
    /// Semaphores of peers with TLS handshakes under way or waiting.
    handshakes: HashMap<Peer, Arc<Semaphore>>,
}

impl Crowds {
    fn of(&mut self, kind: Kind) -> &mut Crowd<Peer, Arc<Notify>> {
        match kind {
            Kind::Arrival => &mut self.arrivals,
            Kind::Scrape => &mut self.scrapes,
            Kind::Stream => &mut self.streams,
            Kind::Page => &mut self.pages,
        }
    }
}

impl Places {
    pub(super) fn new(rooms: Rooms, metrics: WebMetrics) -> Arc<Self> {
        let crowds = Crowds {
            arrivals: Crowd::new(rooms.arrivals, Duration::ZERO),
            scrapes: Crowd::new(rooms.scrapes, SLOW),
            streams: Crowd::new(rooms.streams, SLOW),
            pages: Crowd::new(rooms.pages, SLOW),
            handshakes: Default::default(),
        };
        Arc::new(Self { crowds: Mutex::new(crowds), began: Instant::now(), metrics })
    }

    /// Gives a place to a new connection.
    pub(super) fn arrive(self: &Arc<Self>, peer: Peer) -> Arc<Seat> {
        let seat = Seat {
            places: Arc::clone(self),
            peer,
            lost: Arc::default(),
            at: Mutex::new(None),
            asked: AtomicBool::new(false),
        };
        // Always succeeds, unless there are no places at all.
        seat.take(Kind::Arrival);
        Arc::new(seat)
    }

    /// Ends an arrival's connection when descriptors run out.
    pub(super) fn make_room(&self) {
        if let Some(lost) = self.lock().arrivals.evict() {
            lost.notify_one();
            self.metrics.refused("evicted");
        }
    }

    /// The semaphore for a peer's handshakes, so that they wait only for each other.
    pub(super) fn handshakes(&self, peer: Peer) -> Arc<Semaphore> {
        let all = &mut self.lock().handshakes;
        // Semaphores without another holder belong to peers that are done.
        if all.len() >= 256 {
            all.retain(|_, turns| Arc::strong_count(turns) > 1);
        }
        Arc::clone(all.entry(peer).or_insert_with(|| Arc::new(Semaphore::new(HANDSHAKES))))
    }

    fn lock(&self) -> MutexGuard<'_, Crowds> {
        self.crowds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one connection.
#[derive(Debug)]
pub(super) struct Seat {
    places: Arc<Places>,
    peer: Peer,
    lost: Arc<Notify>,
    at: Mutex<Option<(Kind, u64)>>,
    /// True once the connection has sent a request.
    asked: AtomicBool,
}

impl Seat {
    /// Completes when another connection has taken the place.
    pub(super) async fn lost(&self) {
        self.lost.notified().await;
    }

    /// Moves to a place of this kind; false when there is none, and then it keeps its place.
    fn take(&self, kind: Kind) -> bool {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        let mut crowds = self.places.lock();
        let now = self.places.began.elapsed();
        if let Some((before, number)) = *at
            && before == kind
        {
            // Leave first, so that this connection does not evict itself.
            crowds.of(kind).leave(number);
            *at = None;
        }
        let Some(entered) = crowds.of(kind).enter(self.peer, Arc::clone(&self.lost), now) else {
            self.places.metrics.refused("crowded");
            return false;
        };
        if let Some(lost) = entered.evicted {
            self.places.metrics.refused("evicted");
            lost.notify_one();
        }
        if let Some((before, number)) = at.replace((kind, entered.number)) {
            crowds.of(before).leave(number);
        }
        true
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let at = self.at.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some((kind, number)) = at.take() {
            self.places.lock().of(kind).leave(number);
        }
    }
}

/// Answers the requests of one connection, each in a place of its kind.
pub(super) struct Placed {
    router: TowerToHyperService<Router>,
    seat: Arc<Seat>,
    pages: Handle,
}

impl Placed {
    /// Answers that need a place are computed on `pages`.
    pub(super) fn new(router: Router, seat: Arc<Seat>, pages: Handle) -> Self {
        Self { router: TowerToHyperService::new(router), seat, pages }
    }
}

impl Service<Request<Incoming>> for Placed {
    type Response = Response<Held>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let kind = kind_of(request.uri().path());
        // A connection whose request needs no place becomes a new arrival: it has sent a whole request.
        if !self.seat.take(kind.unwrap_or(Kind::Arrival)) {
            // Closing also drops any requests sent after this one.
            let head = [(header::RETRY_AFTER, "1"), (header::CONNECTION, "close")];
            let busy = "too many requests for this at once; try again\n";
            let busy = (StatusCode::SERVICE_UNAVAILABLE, head, busy).into_response();
            return Box::pin(async { Ok(busy.map(|body| Held { body, place: None })) });
        }
        if kind.is_none() {
            let (answer, again) = (self.router.call(request), self.seat.asked.swap(true, Ordering::Relaxed));
            return Box::pin(async move {
                if again {
                    // Pipelined requests take turns with those of other connections.
                    yield_now().await;
                }
                Ok(answer.await?.map(|body| Held { body, place: None }))
            });
        }
        let place = Some(Place(Arc::clone(&self.seat)));
        let (reply, answer) = oneshot::channel();
        self.pages.spawn(compute(self.router.clone(), request, reply));
        Box::pin(async move {
            let failed = |_| (StatusCode::INTERNAL_SERVER_ERROR, "the answer failed\n").into_response();
            Ok(answer.await.unwrap_or_else(failed).map(|body| Held { body, place }))
        })
    }
}

type Data = <Body as HttpBody>::Data;
type BodyError = <Body as HttpBody>::Error;

/// Computes an answer; a streamed body is computed as the client reads it. Ends when the connection has gone.
async fn compute(
    router: TowerToHyperService<Router>,
    request: Request<Incoming>,
    mut reply: oneshot::Sender<Response<Body>>,
) {
    let response = tokio::select! {
        response = router.call(request) => response,
        () = reply.closed() => return,
    };
    let Ok(response) = response;
    // The send fails only when the connection has gone.
    if response.body().size_hint().exact().is_some() {
        reply.send(response).ok();
        return;
    }
    let (head, mut body) = response.into_parts();
    let (frames, passed) = mpsc::channel(1);
    if reply.send(Response::from_parts(head, Body::new(Passed(passed)))).is_err() {
        return;
    }
    loop {
        let next = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context));
        let frame = tokio::select! {
            frame = next => frame,
            () = frames.closed() => return,
        };
        let Some(frame) = frame else { return };
        if frames.send(frame).await.is_err() {
            return;
        }
    }
}

/// A body that is computed on another thread.
struct Passed(mpsc::Receiver<Result<Frame<Data>, BodyError>>);

impl HttpBody for Passed {
    type Data = Data;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.0.poll_recv(context)
    }
}

/// The place of an answer. When dropped, the connection becomes an arrival again; the rest of the answer is in buffers.
struct Place(Arc<Seat>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.take(Kind::Arrival);
    }
}

/// An answer that holds its place until it is written.
pub(super) struct Held {
    body: Body,
    place: Option<Place>,
}

impl HttpBody for Held {
    type Data = Data;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(None) = frame {
            self.place = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use prometheus::Registry;

    use super::*;

    const ROOMS: Rooms = Rooms { arrivals: 2, scrapes: 1, streams: 1, pages: 1 };

    #[test]
    fn each_request_has_its_kind_by_its_path() {
        for (path, kind) in [
            ("/healthz", None),
            ("/readyz", None),
            ("/pool/be_web/web1", None),
            ("/metrics", Some(Kind::Scrape)),
            ("/metrics/", Some(Kind::Page)),
            ("/api/v1/events", Some(Kind::Stream)),
            ("/pool", Some(Kind::Page)),
            ("/", Some(Kind::Page)),
            ("/api/v1/services", Some(Kind::Page)),
        ] {
            assert_eq!(kind_of(path), kind, "{path}");
        }
    }

    #[test]
    fn a_connection_has_one_place_at_a_time_and_none_when_it_is_gone() {
        let places = Places::new(ROOMS, WebMetrics::new(&Registry::new()).expect("registered"));
        let counts = || {
            let crowds = places.lock();
            [crowds.arrivals.len(), crowds.scrapes.len(), crowds.pages.len()]
        };
        let seat = places.arrive(Peer::User(7));
        assert_eq!(counts(), [1, 0, 0]);
        assert!(seat.take(Kind::Scrape));
        assert_eq!(counts(), [0, 1, 0]);
        let other = places.arrive(Peer::User(7));
        assert!(!other.take(Kind::Scrape), "one that has just begun is not ended for another of the same user");
        assert_eq!(counts(), [1, 1, 0]);
        drop(Place(Arc::clone(&seat)));
        assert_eq!(counts(), [2, 0, 0], "its answer is written");
        drop((seat, other));
        assert_eq!(counts(), [0, 0, 0]);
    }

    #[test]
    fn one_more_request_of_a_connection_takes_no_place_of_another() {
        let places = Places::new(ROOMS, WebMetrics::new(&Registry::new()).expect("registered"));
        let (first, second) = (places.arrive(Peer::User(7)), places.arrive(Peer::User(7)));
        for _ in 0..3 {
            assert!(first.take(Kind::Arrival));
        }
        assert_eq!(places.lock().arrivals.len(), 2);
        // Now the second one is the oldest.
        let third = places.arrive(Peer::User(7));
        assert!(second.lost.notified().now_or_never().is_some());
        assert!(first.lost.notified().now_or_never().is_none());
        drop((first, second, third));
    }

    #[tokio::test]
    async fn who_loses_the_place_is_told_and_takes_none_from_whoever_has_it_now() {
        let places = Places::new(ROOMS, WebMetrics::new(&Registry::new()).expect("registered"));
        let first = places.arrive(Peer::User(7));
        let second = places.arrive(Peer::User(7));
        let third = places.arrive(Peer::User(8));
        first.lost().await;
        drop(first);
        assert_eq!(places.lock().arrivals.len(), 2);
        places.make_room();
        second.lost().await;
        drop((second, third));
        assert_eq!(places.lock().arrivals.len(), 0);
    }

    #[test]
    fn there_is_room_for_what_the_agent_itself_needs() {
        let sum = |rooms: Rooms| rooms.arrivals + rooms.scrapes + rooms.streams + rooms.pages;
        assert!(sum(Rooms::of(1024)) < 1024 - 200, "{:?}", Rooms::of(1024));
        assert_eq!(Rooms::of(1_000_000).arrivals, 256);
        assert_eq!(Rooms::of(10).arrivals, 32);
    }
}
