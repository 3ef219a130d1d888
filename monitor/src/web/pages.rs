//! Pages for people: what stands where, and what happened. Made here, without scripts; one script shows what happens while a
//! page is open. Links are relative, so that a proxy may put the pages below a prefix.

mod curve;
mod incident;
mod services;
mod traced;

use axum::{
    Router,
    extract::{Path, Query, State},
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use jiff::Timestamp;
use maud::{DOCTYPE, Markup, html};
use serde::Deserialize;

use super::Api;
use crate::{
    control::Command,
    figures, overview,
    text::Clean,
    trace::show::{kept::Shelf, summary::for_incident},
};

/// Services on one page.
const SERVICES: usize = 200;
/// Incidents that are looked at for a page; the newest [`services::RECENT`] are listed.
const INCIDENTS: u32 = 100;
/// Nothing from elsewhere, nothing written into the page itself, and no other page around it.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";
type Headers = [(HeaderName, &'static str); 4];

/// The pages, and what they load.
pub(super) fn router(api: Api) -> Router {
    Router::new()
        .route("/", get(services))
        .route("/incidents/{id}", get(incident))
        .route(
            "/assets/pages.css",
            get(|| async { (headers("text/css; charset=utf-8"), include_str!("pages/pages.css")) }),
        )
        .route(
            "/assets/live.js",
            get(|| async { (headers("text/javascript; charset=utf-8"), include_str!("pages/live.js")) }),
        )
        .with_state(api)
}

/// Which part of many services; pages are numbered from 1.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    page: Option<usize>,
}

async fn services(State(api): State<Api>, Query(Which { page }): Query<Which>) -> Response {
    match look(&api, page.unwrap_or(1)).await {
        Ok(body) => answer(StatusCode::OK, "Services", "", &body),
        Err(error) => error,
    }
}

async fn look(api: &Api, page: usize) -> Result<Markup, Response> {
    let mut all = api.ask(Command::Status).await?;
    overview::sort(&mut all);
    let pages = all.len().div_ceil(SERVICES).max(1);
    if !(1..=pages).contains(&page) {
        let body = html! { h1 { "Not found" } p { "There is no page " (page) " of services. " a href="./" { "The first page" } } };
        return Err(answer(StatusCode::NOT_FOUND, "Not found", "", &body));
    }
    let down = all.iter().filter(|status| overview::is_down(status)).count();
    let counts = services::Counts { all: all.len(), down, page, pages };
    let shown: Vec<_> = all.into_iter().skip((page - 1) * SERVICES).take(SERVICES).collect();
    let names = shown.iter().map(|status| status.service.clone()).collect();
    let curves = api.ask(|reply| Command::Curves(names, reply)).await?;
    // What is known now is worth showing even when the record cannot be read.
    let incidents = api.read(|reader| reader.incidents(None, INCIDENTS)).await.ok();
    Ok(services::body(&counts, &shown, &curves, incidents.as_deref(), Timestamp::now()))
}

async fn incident(State(api): State<Api>, Path(id): Path<i64>) -> Response {
    match api.read(move |reader| reader.incident(id)).await {
        Ok(Some(one)) => {
            let service = one.service.clone();
            let kept = api.look(move |state_dir| Shelf::of(state_dir).list(Some(&service))).await;
            // The incident is worth showing without, too.
            let traced = kept.ok().and_then(|kept| for_incident(kept, &one));
            let body = html! { (incident::body(&one)) (traced::section(traced.as_ref())) };
            answer(StatusCode::OK, &format!("Incident {id}"), "../", &body)
        }
        Ok(None) => {
            let body =
                html! { h1 { "Not found" } p { "There is no incident " (id) ". " a href="../" { "All services" } } };
            answer(StatusCode::NOT_FOUND, "Not found", "../", &body)
        }
        Err(error) => error,
    }
}

fn headers(kind: &'static str) -> Headers {
    [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ]
}

/// `root`: the way from this page to the first one.
fn answer(status: StatusCode, title: &str, root: &str, body: &Markup) -> Response {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · Defib" }
                link rel="stylesheet" href={ (root) "assets/pages.css" };
                script src={ (root) "assets/live.js" } defer {}
            }
            body {
                a class="skip" href="#main" { "To the content" }
                header { nav aria-label="Defib" { a href={ (root) "./" } { "Defib" } } }
                main id="main" { (body) }
            }
        }
    };
    (status, headers("text/html; charset=utf-8"), page.into_string()).into_response()
}

/// What somebody else wrote, with its control characters shown and no longer than `most` characters.
fn bounded(text: &str, most: usize) -> String {
    figures::head(&Clean(&figures::head(text, most)).to_string(), most)
}

fn time(at: Timestamp) -> Markup {
    html! { time datetime=(format!("{at:.3}")) { (at.strftime("%Y-%m-%d %H:%M:%S UTC")) } }
}

#[cfg(test)]
mod tests;
