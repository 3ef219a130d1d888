//! `defib top`: what `defib status` shows, live, with the incidents below it. Asks the agent each second; draws what it has
//! when the agent is away, and says so.

mod view;

use std::{
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};

use super::{asked_to_stop, config_arg};
use crate::{
    control::{self, Status},
    incident::Incident,
    store::Reader,
};
use view::View;

/// Between two looks.
const REFRESH: Duration = Duration::from_secs(1);
/// Between two looks whether keys are still wanted.
const KEYS: Duration = Duration::from_millis(200);
/// Incidents that are looked at; restarts are counted in these.
const INCIDENTS: u32 = 100;

/// Arguments of `top`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: config_arg::Args,
    /// The agent's control socket, over what the configuration says
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Where state is kept, over what the configuration says
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

/// What one look found.
struct Look {
    services: Result<Vec<Status>>,
    incidents: Result<Vec<Incident>>,
}

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    Leave,
    /// So many rows down.
    Move(isize),
    /// Nothing but a new drawing: the window has another size.
    Draw,
}

pub(super) async fn run(args: Args) -> Result<()> {
    ensure!(
        io::stdin().is_terminal() && io::stdout().is_terminal(),
        "defib top needs a terminal; 'defib status' shows the same once, and with --json for programs"
    );
    let (socket, state_dir) = match (args.socket, args.state_dir) {
        (Some(socket), Some(state_dir)) => (socket, state_dir),
        (socket, state_dir) => {
            let agent = args.config.load()?.agent;
            (socket.unwrap_or(agent.control_socket), state_dir.unwrap_or(agent.state_dir))
        }
    };
    let stopped = asked_to_stop()?;
    // Restores the terminal on a panic, too.
    let mut terminal = ratatui::try_init().context("cannot set the terminal up")?;
    let outcome = tokio::select! {
        outcome = show(&mut terminal, socket, state_dir) => outcome,
        () = stopped => Ok(()),
    };
    ratatui::try_restore().context("cannot set the terminal back; 'reset' does")?;
    outcome
}

async fn show(terminal: &mut ratatui::DefaultTerminal, socket: PathBuf, state_dir: PathBuf) -> Result<()> {
    let (looks_in, mut looks) = watch::channel(None);
    let looking = tokio::spawn(async move {
        let mut ticks = interval(REFRESH);
        // After an agent that was slow to answer there is nothing to make up for.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !looks_in.is_closed() {
            ticks.tick().await;
            looks_in.send_replace(Some(look(&socket, &state_dir).await));
        }
    });
    let mut wishes = keys();
    let mut view = View::default();
    let outcome = loop {
        if let Err(error) = terminal.draw(|frame| view.draw(frame, Timestamp::now())) {
            break Err(error).context("cannot draw");
        }
        tokio::select! {
            Ok(()) = looks.changed() => {
                if let Some(Look { services, incidents }) = looks.borrow_and_update().as_ref() {
                    view.take(services.as_deref(), incidents.as_deref());
                }
            }
            wish = wishes.recv() => match wish {
                Some(Wish::Move(rows)) => view.move_by(rows),
                Some(Wish::Draw) => {}
                Some(Wish::Leave) | None => break Ok(()),
            },
        }
    };
    looking.abort();
    outcome
}

async fn look(socket: &Path, state_dir: &Path) -> Look {
    let services = control::request(socket, "/status", None::<()>).await;
    let directory = state_dir.to_owned();
    let incidents = tokio::task::spawn_blocking(move || Reader::open(&directory)?.incidents(None, INCIDENTS)).await;
    Look { services, incidents: incidents.context("the look into the store failed").and_then(|found| found) }
}

/// Reads keys in a thread of its own, since that waits; it ends soon after nobody listens.
fn keys() -> mpsc::Receiver<Wish> {
    let (wishes_in, wishes) = mpsc::channel(16);
    thread::spawn(move || {
        while !wishes_in.is_closed() {
            let wish = match event::poll(KEYS) {
                Ok(false) => continue,
                Ok(true) => match event::read() {
                    Ok(Event::Key(key)) => wish(key),
                    Ok(Event::Resize(..)) => Some(Wish::Draw),
                    Ok(_) => None,
                    Err(_) => return,
                },
                // The terminal has gone; so does the receiver's other end.
                Err(_) => return,
            };
            if wish.is_some_and(|wish| wishes_in.blocking_send(wish).is_err()) {
                return;
            }
        }
    });
    wishes
}

fn wish(key: KeyEvent) -> Option<Wish> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => Some(Wish::Leave),
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Wish::Leave),
        KeyCode::Down | KeyCode::Char('j') => Some(Wish::Move(1)),
        KeyCode::Up | KeyCode::Char('k') => Some(Wish::Move(-1)),
        KeyCode::PageDown => Some(Wish::Move(10)),
        KeyCode::PageUp => Some(Wish::Move(-10)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_do_what_the_last_line_says() {
        let key = |code, modifiers| wish(KeyEvent::new(code, modifiers));
        for code in [KeyCode::Char('q'), KeyCode::Esc] {
            assert_eq!(key(code, KeyModifiers::NONE), Some(Wish::Leave));
        }
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Wish::Leave));
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::NONE), None);
        assert_eq!(key(KeyCode::Char('j'), KeyModifiers::NONE), key(KeyCode::Down, KeyModifiers::NONE));
        assert_eq!(key(KeyCode::Up, KeyModifiers::NONE), Some(Wish::Move(-1)));
    }
}
