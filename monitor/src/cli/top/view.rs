//! What `defib top` shows, and how it is drawn. Pure: what was found and the time come from outside.

use anyhow::Error;
use jiff::Timestamp;
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::Line,
    widgets::{Block, Borders, Cell, Paragraph, Row, Table, TableState},
};

use crate::{
    control::Status,
    figures::{bytes, head, since, span, tail},
    incident::{Incident, report},
    overview::{self, Past},
    text::Clean,
};

/// Columns from which on there is room for all figures.
const WIDE: u16 = 120;
/// Columns of a name at least.
const NAME: u16 = 14;
/// Cells of a memory bar.
const BAR: u64 = 8;

/// See the module.
#[derive(Default)]
pub(super) struct View {
    services: Vec<Status>,
    incidents: Vec<Incident>,
    /// Whether the agent has answered yet.
    heard: bool,
    /// Why what is shown of services is old.
    agent_trouble: Option<String>,
    /// Why incidents are not shown.
    store_trouble: Option<String>,
    table: TableState,
}

impl View {
    /// Takes what was found; what could not be had stays as it was, and is said.
    pub(super) fn take(&mut self, services: Result<&[Status], &Error>, incidents: Result<&[Incident], &Error>) {
        let selected =
            self.table.selected().and_then(|row| self.services.get(row)).map(|status| status.service.clone());
        match services {
            Ok(services) => {
                self.services = services.to_vec();
                overview::sort(&mut self.services);
                (self.heard, self.agent_trouble) = (true, None);
            }
            Err(error) => self.agent_trouble = Some(Clean(&error.to_string()).to_string()),
        }
        match incidents {
            Ok(incidents) => {
                self.incidents = incidents.to_vec();
                self.incidents.sort_by_key(report::is_over);
                self.store_trouble = None;
            }
            Err(error) => self.store_trouble = Some(Clean(&error.to_string()).to_string()),
        }
        // The mark stays with its service when the order changes.
        let place = selected.and_then(|name| self.services.iter().position(|status| status.service == name));
        let last = self.services.len().checked_sub(1);
        self.table.select(place.or(last.map(|last| self.table.selected().unwrap_or(0).min(last))));
    }

    /// Moves the mark.
    pub(super) fn move_by(&mut self, rows: isize) {
        let Some(last) = self.services.len().checked_sub(1) else { return };
        self.table.select(Some(self.table.selected().unwrap_or(0).saturating_add_signed(rows).min(last)));
    }

    /// Draws all of it.
    pub(super) fn draw(&mut self, frame: &mut Frame<'_>, now: Timestamp) {
        let below = (frame.area().height / 3).min(12);
        let rows = [Constraint::Length(1), Constraint::Min(3), Constraint::Length(below), Constraint::Length(1)];
        let [top, middle, bottom, last] = Layout::vertical(rows).areas(frame.area());
        let title = match &self.agent_trouble {
            Some(trouble) => Line::styled(format!("Agent away, trying again: {trouble}"), alarm()),
            None if !self.heard => Line::raw("Asking the agent …"),
            None => {
                let down = self.services.iter().filter(|status| overview::is_down(status)).count();
                let when = now.strftime("%H:%M:%S UTC");
                Line::raw(format!("Defib: {} services, {down} down; {when}", self.services.len()))
            }
        };
        frame.render_widget(title, top);
        self.draw_services(frame, middle, now);
        self.draw_incidents(frame, bottom, now);
        frame.render_widget(Line::raw("q, Esc: leave   ↑ ↓, k j: move   PgUp PgDn"), last);
    }

    fn draw_services(&mut self, frame: &mut Frame<'_>, area: Rect, now: Timestamp) {
        let wide = area.width >= WIDE;
        let pasts = overview::pasts(&self.incidents);
        let mut names = vec!["SERVICE", "STATE", "MEMORY", "OOM IN", "POOL"];
        let mut widths = vec![Constraint::Min(NAME), Constraint::Length(15), Constraint::Length(13)];
        widths.extend([Constraint::Length(6), Constraint::Length(8)]);
        if wide {
            widths[2] = Constraint::Length(35);
            names.insert(3, "GROWTH/H");
            widths.insert(3, Constraint::Length(10));
        }
        names.extend(["RESTARTS", "LAST DEATH"]);
        widths.extend([Constraint::Length(8), Constraint::Length(if wide { 34 } else { 10 })]);
        let others: u16 =
            widths.iter().map(|width| if let Constraint::Length(width) = width { width + 1 } else { 0 }).sum();
        let name = usize::from(area.width.saturating_sub(others).max(NAME));
        let rows =
            self.services.iter().map(|status| row(status, pasts.get(status.service.as_str()), (wide, name), now));
        let table = Table::new(rows, widths)
            .header(Row::new(names).style(Style::new().add_modifier(Modifier::BOLD)))
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        frame.render_stateful_widget(table, area, &mut self.table);
    }

    fn draw_incidents(&self, frame: &mut Frame<'_>, area: Rect, now: Timestamp) {
        let title = format!("Incidents: open ones, then the newest of the last {}", super::INCIDENTS);
        let block = Block::new().borders(Borders::TOP).title(title);
        let lines: Vec<_> = match &self.store_trouble {
            Some(trouble) => vec![Line::styled(trouble.clone(), alarm())],
            None => self.incidents.iter().take(area.height.into()).map(|incident| told(incident, now)).collect(),
        };
        frame.render_widget(Paragraph::new(lines).block(block), area);
    }
}

fn alarm() -> Style {
    Style::new().fg(Color::Red).add_modifier(Modifier::BOLD)
}

fn row<'a>(status: &Status, past: Option<&Past<'_>>, (wide, name): (bool, usize), now: Timestamp) -> Row<'a> {
    let down = overview::is_down(status);
    let dash = || "-".to_owned();
    let time = status.down_since.or(status.started).map(|at| since(at, now)).unwrap_or_default();
    let mut cells = vec![
        tail(&Clean(&status.service).to_string(), name),
        format!("{}{} {time}", if down { "▼ " } else { "" }, status.state),
        memory(status, wide),
    ];
    if wide {
        cells.push(overview::growth(status).map_or_else(dash, bytes));
    }
    cells.push(overview::seconds_left(status).map_or_else(dash, |left| span((left * 1e3) as u64)));
    cells.push(status.pool.map_or_else(dash, |pool| pool.as_str().to_owned()));
    cells.push(past.map_or(0, |past| past.restarts).to_string());
    cells.push(past.map_or_else(dash, |Past { last, .. }| {
        let ago = format!("{} ago", since(last.began, now));
        if wide { format!("{ago}: {}", Clean(&head(&last.cause_text, 60))) } else { ago }
    }));
    let row = Row::new(cells.into_iter().map(Cell::new));
    if down { row.style(alarm()) } else { row }
}

/// A bar of the limit, and what it stands for.
fn memory(status: &Status, wide: bool) -> String {
    let Some(used) = status.memory_bytes else { return "-".to_owned() };
    let Some(limit) = status.memory_limit_bytes.filter(|limit| *limit > 0) else { return bytes(used) };
    let percent = u128::from(used) * 100 / u128::from(limit);
    let full = (percent * u128::from(BAR)).div_ceil(100).min(u128::from(BAR)) as usize;
    let bar = format!("{}{} {percent:>3}%", "█".repeat(full), "░".repeat(BAR as usize - full));
    if wide { format!("{bar} {} of {}", bytes(used), bytes(limit)) } else { bar }
}

fn told<'a>(incident: &Incident, now: Timestamp) -> Line<'a> {
    let cause = if incident.cause_text.is_empty() { "cause not known" } else { &incident.cause_text };
    let open = !report::is_over(incident);
    let text = format!(
        "{:>5}  {:>6} ago  {}: {}; {}",
        incident.id,
        since(incident.began, now),
        tail(&Clean(&incident.service).to_string(), 40),
        if open { "open".to_owned() } else { report::outcome(incident).to_owned() },
        Clean(&head(cause, 200)),
    );
    Line::styled(text, if open { alarm() } else { Style::new() })
}

#[cfg(test)]
mod tests;
