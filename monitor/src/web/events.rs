//! `/api/v1/events`: what happens, as it happens, as Server-Sent Events. A reader that is slow is told how many moments it
//! has missed; one that does not read at all costs its place and nothing else.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{
        IntoResponse as _, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::stream;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;

use super::Api;
use crate::{host::clock, timeline::Moment};

/// Readers at a time; each holds a connection and nothing that grows.
pub(super) const STREAMS: usize = 32;
/// Between two comments on a silent stream: proxies close those that are silent for a minute (nginx, proxy_read_timeout).
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Follows the timeline until the reader or the agent goes.
pub(super) async fn stream(State(api): State<Api>) -> Response {
    let Ok(place) = Arc::clone(&api.streams).try_acquire_owned() else {
        let full = format!("{STREAMS} readers follow already, which is all that may; try again later\n");
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "30")], full).into_response();
    };
    let moments = api.timeline.listen();
    let events = stream::unfold((api.timeline, moments, place), |(timeline, mut moments, place)| async move {
        let event = match moments.recv().await {
            Ok(moment) => told(&moment),
            Err(RecvError::Lagged(lost)) => {
                timeline.missed(lost);
                Event::default().event("lost").data(json!({ "lost": lost }).to_string())
            }
            Err(RecvError::Closed) => return None,
        };
        Some((Ok::<_, Infallible>(event), (timeline, moments, place)))
    });
    let events = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    // A proxy that collects an answer first (nginx does) would never pass this one on.
    ([("x-accel-buffering", "no")], events).into_response()
}

/// A moment for a program: JSON escapes line ends, so it cannot become two events.
fn told(moment: &Moment) -> Event {
    let data = json!({
        "time": clock::wall(moment.at_ns),
        "service": &*moment.service,
        "what": moment.what.word(),
        "text": moment.what.to_string(),
    });
    Event::default().event("moment").data(data.to_string())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokio::sync::mpsc;

    use super::*;
    use crate::timeline::{Timeline, What};

    async fn next(body: &mut axum::body::BodyDataStream) -> String {
        use futures_util::StreamExt as _;
        let frame = body.next().await.expect("a frame").expect("no error");
        String::from_utf8(frame.to_vec()).expect("UTF-8")
    }

    #[tokio::test]
    async fn moments_come_one_by_one_a_slow_reader_hears_what_it_lost_and_places_are_few() {
        let timeline = Timeline::new();
        let api = Api::new(mpsc::channel(1).0, PathBuf::new(), timeline.clone());
        let web: Arc<str> = "we\nb".into();
        let mut body = stream(State(api.clone())).await.into_body().into_data_stream();
        timeline.say(1, &web, What::Died);
        let text = next(&mut body).await;
        assert!(text.starts_with("event: moment\ndata: {") && text.contains(r#""service":"we\nb""#), "{text}");
        assert!(text.contains(r#""what":"died""#), "{text}");
        for _ in 0..1030 {
            timeline.say(1, &web, What::Marked);
        }
        let text = next(&mut body).await;
        assert_eq!(text, "event: lost\ndata: {\"lost\":6}\n\n");
        let registry = prometheus::Registry::new();
        timeline.register(&registry).expect("a name of its own");
        assert_eq!(registry.gather()[0].get_metric()[0].get_counter().get_value(), 6.0);
        let mut others = Vec::new();
        for _ in 1..STREAMS {
            others.push(stream(State(api.clone())).await);
        }
        assert!(others.iter().all(|answer| answer.status() == StatusCode::OK));
        assert_eq!(stream(State(api.clone())).await.status(), StatusCode::SERVICE_UNAVAILABLE);
        drop(body);
        assert_eq!(stream(State(api)).await.status(), StatusCode::OK, "a place is free again");
    }
}
