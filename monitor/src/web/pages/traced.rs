//! Where the memory of an incident's service grew, on its page. Pure.

use maud::{Markup, html};

use super::{bounded, time};
use crate::{
    figures::{bytes, span},
    trace::{Summary, show::report::ended},
};

/// Characters of a name that are shown.
const NAME: usize = 200;

/// Nothing when no trace is kept.
pub(super) fn section(traced: Option<&Summary>) -> Markup {
    let Some(traced) = traced else { return html! {} };
    html! {
        h2 { "Where its memory grew" }
        p {
            "Traced at " (time(traced.began)) " for " (span((traced.seconds * 1e3) as u64)) " (" (ended(traced.ended)) "): "
            @if traced.stacks.is_empty() { "nothing that it asked for and kept grew." } @else {
                (bytes(traced.bytes_per_hour as u64)) " an hour stayed."
            }
        }
        @if !traced.stacks.is_empty() {
            div class="scroll" role="region" tabindex="0" aria-labelledby="traced" {
                table {
                    caption id="traced" { "The call stacks that grew fastest" }
                    thead {
                        tr {
                            th scope="col" { "Share" } th scope="col" { "Growth an hour" } th scope="col" { "Code that asked" }
                            th scope="col" { "Called by" }
                        }
                    }
                    tbody {
                        @for top in &traced.stacks {
                            tr {
                                th scope="row" { (format!("{:.0} %", top.share * 100.0)) }
                                td data-label="Growth an hour" { (bytes(top.bytes_per_hour as u64)) }
                                td data-label="Code that asked" {
                                    (bounded(&top.function, NAME))
                                    @if let Some(source) = &top.source { " (" (bounded(source, NAME)) ")" }
                                }
                                td data-label="Called by" { (bounded(&top.callers.join(" < "), 3 * NAME)) }
                            }
                        }
                    }
                }
            }
        }
        @if let Some(kept) = &traced.kept {
            // Its characters are those of a path, as it was made.
            p {
                a href={ "../api/v1/traces/" (kept) "/flame.svg" } { "Flame graph" } ", "
                a href={ "../api/v1/traces/" (kept) "/growth.json" } { "JSON" } ", "
                a href={ "../api/v1/traces/" (kept) "/folded.txt" } { "folded stacks" }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::show::sample;

    #[test]
    fn the_three_that_grow_fastest_are_shown_with_the_way_to_the_rest() {
        let mut traced = Summary::of(&sample::growth());
        traced.kept = Some("web.service/2023-11-14T22-13-20.000Z".to_owned());
        let text = section(Some(&traced)).into_string();
        for part in [
            "203.0 MiB an hour stayed.",
            "web::cache::insert (src/cache.rs:88)",
            "web::serve &lt; main &lt; _start",
            "href=\"../api/v1/traces/web.service/2023-11-14T22-13-20.000Z/flame.svg\"",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert_eq!(section(None).into_string(), "");
    }

    #[test]
    fn a_hostile_name_stays_text_and_is_bounded() {
        let text = section(Some(&Summary::of(&sample::hostile(10_000)))).into_string();
        assert!(!text.contains("<script") && text.contains("&lt;script&gt;"), "{text}");
        assert!(!text.contains(['\u{1b}', '\u{202e}', '\u{7}']) && text.len() < 8000, "{}", text.len());
    }
}
