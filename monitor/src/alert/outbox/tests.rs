use super::*;
use crate::alert::board::{Standing, TTL};

const NOW: u64 = 100_000 * SECOND;

fn board(services: usize) -> Board {
    let mut board = Board::default();
    for number in 0..services {
        let down = Standing { down_since_ns: Some(NOW), ..Standing::default() };
        board.stands(&format!("s{number:04}"), down, NOW);
    }
    board.advance(NOW);
    board
}

fn post(outbox: &mut Outbox, board: &Board, now: u64) -> Vec<Posting> {
    match outbox.next(board, now) {
        Next::Post(batch) => batch,
        other => panic!("{other:?}"),
    }
}

fn refused() -> Answer {
    Answer::Refused("no".to_owned())
}

fn failed() -> Answer {
    Answer::Failed("no".to_owned())
}

#[test]
fn what_fires_is_told_at_once_and_again_each_minute_well_before_it_would_end() {
    let (mut board, mut outbox) = (board(1), Outbox::default());
    let batch = post(&mut outbox, &board, NOW);
    assert_eq!((batch.len(), batch[0].ended_ns), (1, None));
    let accepted = outbox.answered(&batch, &Answer::Accepted, NOW);
    assert_eq!(accepted, [(batch[0].key(), batch[0].version)]);
    assert_eq!(outbox.next(&board, NOW), Next::Wait { until_ns: Some(NOW + RESEND) });
    const { assert!(RESEND * 4 <= TTL) };
    assert_eq!(post(&mut outbox, &board, NOW + RESEND), batch);
    outbox.answered(&batch, &Answer::Accepted, NOW + RESEND);

    board.stands("s0000", Standing::default(), NOW + RESEND + 1);
    board.advance(NOW + RESEND + 1);
    let end = post(&mut outbox, &board, NOW + RESEND + 1);
    assert_eq!(end[0].ended_ns, Some(NOW + RESEND + 1));
    outbox.answered(&end, &Answer::Accepted, NOW + RESEND + 1);
    assert!(matches!(outbox.next(&board, NOW + 3 * RESEND), Next::Wait { .. }), "an end is told once");
}

#[test]
fn a_peer_that_does_not_answer_is_tried_less_and_less_often_and_loses_nothing() {
    let (board, mut outbox) = (board(100), Outbox::default());
    let (mut now, mut waits) = (NOW, Vec::new());
    for _ in 0..10 {
        let batch = post(&mut outbox, &board, now);
        assert_eq!(batch.len(), BATCH);
        assert_eq!(outbox.answered(&batch, &failed(), now), []);
        let Next::Hold { until_ns } = outbox.next(&board, now) else { panic!("it is tried again at once") };
        waits.push((until_ns - now) / (SECOND / 4));
        now = until_ns;
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
    let mut told = 0;
    for _ in 0..2 {
        let batch = post(&mut outbox, &board, now);
        told += outbox.answered(&batch, &Answer::Accepted, now).len();
    }
    assert_eq!(told, 100, "and the second batch waits for nothing");
}

#[test]
fn one_alert_that_is_refused_is_found_and_left_alone_and_the_others_are_told() {
    let (mut board, mut outbox) = (board(5), Outbox::default());
    let (mut posts, mut accepted) = (0, Vec::new());
    let bad = |posting: &Posting| &*posting.service == "s0003";
    while let Next::Post(batch) = outbox.next(&board, NOW) {
        posts += 1;
        let answer = if batch.iter().any(bad) { refused() } else { Answer::Accepted };
        accepted.extend(outbox.answered(&batch, &answer, NOW));
    }
    assert_eq!((posts, accepted.len()), (6, 4));
    // Not with the others of the next minutes, and not alone.
    for minute in 1..10 {
        let now = NOW + minute * RESEND;
        let batch = post(&mut outbox, &board, now);
        assert_eq!(batch.iter().filter(|posting| bad(posting)).count(), 0);
        outbox.answered(&batch, &Answer::Accepted, now);
    }
    // Its end is something else, and may be right.
    board.stands("s0003", Standing::default(), NOW + 10 * RESEND);
    board.advance(NOW + 10 * RESEND);
    let batch = post(&mut outbox, &board, NOW + 10 * RESEND);
    assert!(bad(&batch[0]) && batch[0].ended_ns.is_some(), "{batch:?}");
}

#[test]
fn news_is_told_before_what_was_said_before() {
    let (mut board, mut outbox) = (board(300), Outbox::default());
    while let Next::Post(batch) = outbox.next(&board, NOW) {
        outbox.answered(&batch, &Answer::Accepted, NOW);
    }
    let now = NOW + RESEND;
    let down = Standing { down_since_ns: Some(now), ..Standing::default() };
    board.stands("zebra", down, now);
    board.advance(now);
    assert_eq!(&*post(&mut outbox, &board, now)[0].service, "zebra");
}
