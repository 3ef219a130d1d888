use ratatui::{Terminal, backend::TestBackend};

use super::*;
use crate::incident::{Before, Book};

fn status(service: &str, down: bool, left: Option<f64>) -> Status {
    let json = serde_json::json!({
        "service": service, "state": if down { "grace" } else { "running" }, "pid": 7,
        "started": "2026-01-01T00:00:00Z", "down_since": down.then_some("2026-01-01T00:00:30Z"), "incident": null,
        "paused_until": null, "memory_bytes": 50 << 20, "memory_limit_bytes": 100 << 20, "pool": "draining",
        "forecast": {
            "verdict": "leak", "advisory": true, "level": null, "growth_bytes_per_hour": 1048576.0,
            "time_to_oom_seconds": left, "time_to_oom_seconds_low": null, "time_to_oom_seconds_high": null,
            "uptime_seconds": 1.0, "longest_uptime_seconds": 1.0, "usual_uptime_seconds": null,
            "uptime_at_oom_seconds": null, "severity": null, "builds": null, "exhausted_in_seconds": null
        },
        "forecast_text": ""
    });
    serde_json::from_value(json).expect("a status")
}

fn drawn(view: &mut View, width: u16, height: u16) -> Vec<String> {
    let now = "2026-01-01T00:01:00Z".parse().expect("a time");
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| view.draw(frame, now)).expect("drawn");
    let buffer = terminal.backend().buffer();
    let row = |row: &[ratatui::buffer::Cell]| row.iter().map(|cell| cell.symbol()).collect();
    buffer.content().chunks(width.into()).map(row).collect()
}

fn incidents() -> Vec<Incident> {
    let mut book = Book::new(Vec::new(), 1);
    book.open(&"web".into(), "2026-01-01T00:00:30Z".parse().expect("a time"), Before::default());
    book.take_changed()
}

#[test]
fn narrow_and_wide_show_what_needs_attention_first() {
    let mut view = View::default();
    let services = [status("calm", false, None), status("soon", false, Some(3600.0)), status("web", true, None)];
    view.take(Ok(&services), Ok(&incidents()));
    let lines = drawn(&mut view, 80, 24);
    assert!(lines[0].starts_with("Defib: 3 services, 1 down; 00:01:00 UTC"), "{lines:#?}");
    for (line, wants) in [(2, ["web", "▼ grace 30s"]), (3, ["soon", "60m"]), (4, ["calm", "████░░░░  50%"])]
    {
        assert!(wants.iter().all(|want| lines[line].contains(want)), "{lines:#?}");
    }
    assert!(lines[2].contains("30s ago") && lines[2].contains("draining"), "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains("web: open; cause not known")), "{lines:#?}");
    assert!(lines[23].starts_with("q, Esc: leave"), "{lines:#?}");
    let lines = drawn(&mut view, 160, 50);
    assert!(lines[3].contains("50.0 MiB of 100.0 MiB") && lines[3].contains("1.0 MiB  "), "{lines:#?}");
    for (width, height) in [(1, 1), (20, 3), (400, 2)] {
        drawn(&mut view, width, height);
    }
}

#[test]
fn an_agent_that_goes_away_is_said_and_what_it_said_last_stays() {
    let mut view = View::default();
    view.take(Ok(&[status("web", false, None)]), Ok(&[]));
    view.take(Err(&anyhow::anyhow!("no agent listens")), Err(&anyhow::anyhow!("there is no store")));
    let text = drawn(&mut view, 80, 24).join("\n");
    for want in ["Agent away, trying again: no agent listens", "web", "there is no store"] {
        assert!(text.contains(want), "{want}: {text}");
    }
    view.take(Ok(&[]), Ok(&[]));
    assert!(drawn(&mut view, 80, 24)[0].contains("0 services"));
}

#[test]
fn a_hostile_name_cannot_leave_its_cell() {
    let mut view = View::default();
    let name = format!("\u{1b}[2J\n\u{202e}{}", "x".repeat(5000));
    view.take(Ok(&[status(&name, true, None)]), Ok(&[]));
    let text = drawn(&mut view, 80, 24).join("");
    assert!(!text.contains(['\u{1b}', '\n', '\u{202e}']), "{text}");
    assert!(text.contains('…'), "{text}");
}

#[test]
fn the_mark_stays_with_its_service() {
    let mut view = View::default();
    let (a, b) = (status("a", false, None), status("b", false, None));
    view.take(Ok(&[a.clone(), b]), Ok(&[]));
    view.move_by(1);
    view.take(Ok(&[a, status("b", true, None)]), Ok(&[]));
    assert_eq!(view.table.selected(), Some(0), "b is down and first now");
    view.move_by(100);
    assert_eq!(view.table.selected(), Some(1));
    view.move_by(-100);
    assert_eq!(view.table.selected(), Some(0));
}
