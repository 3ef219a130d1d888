//! The end of a trace: what stays, with names.

use std::time::Duration;

use anyhow::Result;

use super::{
    Options, Trace,
    growth::{Cost, Ended, Growth, Place, Program, Stack},
    ledger::Sum,
    stacks::{Frame, OTHERS},
};
use crate::{
    host::process::{memory_held, processor_seconds},
    symbols::{self, Named, Places},
};

/// Stacks that are told one by one.
const TOLD: usize = 256;

impl Trace {
    /// Ends the trace.
    ///
    /// # Errors
    /// When the counts cannot be read any more.
    pub(super) async fn finish(mut self, options: &Options, took: Duration, ended: Ended) -> Result<Growth> {
        let growth = self.growth();
        let anonymous = [self.anonymous, self.memory()];
        let mut sums: Vec<_> = growth.into_iter().collect();
        sums.sort_by(|(_, a), (_, b)| b.sure_per_hour.total_cmp(&a.sure_per_hour));
        let total: f64 = sums.iter().map(|(_, sum)| sum.bytes_per_hour).sum();
        let is_sure = |(id, sum): &&(_, Sum)| *id != OTHERS && sum.sure_per_hour > 0.0;
        let told: Vec<_> = sums.iter().filter(is_sure).take(TOLD).copied().collect();
        let others = total - told.iter().map(|(_, sum)| sum.bytes_per_hour).sum::<f64>();
        let ids: Vec<_> = told.iter().map(|(id, _)| *id).collect();
        let mut stacks = self.stacks.get(&ids);
        let names = self.names(stacks.values().flat_map(|(frames, _)| frames)).await;
        let mut cut = 0.0;
        let told = told.into_iter().filter_map(|(id, sum)| {
            let (frames, whole) = stacks.remove(&id)?;
            if !whole {
                cut += sum.bytes_per_hour;
            }
            let frames = frames.iter().flat_map(|frame| self.places(frame, &names)).collect();
            let (allocations, bytes) = (sum.samples, sum.bytes);
            Some(Stack { bytes_per_hour: sum.bytes_per_hour, allocations, bytes, frames, whole })
        });
        let stacks: Vec<_> = told.collect();
        let cut_share = if total > 0.0 { (cut / total).clamp(0.0, 1.0) } else { 0.0 };
        if cut_share > 0.1 {
            self.note(
                "stacks that could not be followed to their beginning: code without frame pointers and without tables for \
                 unwinding; build it with -fno-omit-frame-pointer, or with -fasynchronous-unwind-tables"
                    .to_owned(),
            );
        }
        let programs = self.programs.iter().filter_map(|(&number, &processes)| {
            let file = self.files.get(number)?;
            let watched = self.watched_files();
            Some(Program { path: file.path.clone(), build_id: file.build_id.clone(), processes, watched })
        });
        let programs = programs.collect();
        let counts = self.allocations.counts()?;
        let cost = Cost {
            watched_seconds: self.totals.watched,
            watches: self.totals.watches,
            calls: self.totals.calls,
            lost: counts.lost + self.mappings.lost(),
            share: self.share(),
            memory_bytes: memory_held(std::process::id()).unwrap_or(0),
            processor_seconds: processor_seconds(std::process::id()).unwrap_or(0.0),
        };
        Ok(Growth {
            service: options.service.clone(),
            began: self.began,
            seconds: took.as_secs_f64(),
            ended,
            programs,
            anonymous_bytes: anonymous,
            stacks,
            others_bytes_per_hour: others.max(0.0),
            cut_share,
            cost,
            notes: std::mem::take(&mut self.notes),
        })
    }

    /// The files whose allocators were watched.
    fn watched_files(&self) -> Vec<String> {
        let mut files: Vec<_> = self
            .seen_allocators
            .iter()
            .filter_map(|&number| self.files.get(number))
            .map(|file| file.path.clone())
            .collect();
        files.sort_unstable();
        files
    }

    /// Names of all these frames; none where a process that reads symbols cannot be had.
    async fn names(&mut self, frames: impl Iterator<Item = &Frame>) -> Names {
        let mut names = Names::default();
        let mut question = Places::default();
        for frame in frames {
            if names.0.contains_key(frame) {
                continue;
            }
            let place = match frame.module {
                Some(number) => self.files.get(number).and_then(|file| file.module.offset_of(frame.address)),
                None => Some(frame.address),
            };
            if let Some(place) = place {
                names.0.insert(*frame, Err(question.places.len()));
                question.places.push((frame.module, place));
            }
        }
        question.process = self.subjects.values().next().map(|subject| subject.process.identity.tgid);
        question.files = self.files.all().map(|file| (file.reachable.clone(), file.build_id.clone())).collect();
        match symbols::name_places(question).await {
            Ok(mut answer) => {
                for name in names.0.values_mut() {
                    if let Err(at) = *name {
                        *name = Ok(answer.get_mut(at).map(std::mem::take).unwrap_or_default());
                    }
                }
            }
            Err(error) => self.note(format!("functions have no names: {error:#}")),
        }
        names
    }

    fn places(&self, frame: &Frame, names: &Names) -> Vec<Place> {
        let file = frame.module.and_then(|number| self.files.get(number));
        let plain = Place {
            module: file.map(|file| file.path.clone()),
            build_id: file.and_then(|file| file.build_id.clone()),
            offset: file.and_then(|file| file.module.offset_of(frame.address)).unwrap_or(frame.address),
            ..Place::default()
        };
        match names.0.get(frame) {
            Some(Ok(named)) if !named.is_empty() => named
                .iter()
                .map(|named| Place {
                    function: named.function.clone(),
                    file: named.line.as_ref().map(|(file, _)| file.clone()),
                    line: named.line.as_ref().and_then(|&(_, line)| line),
                    inlined: named.inlined,
                    ..plain.clone()
                })
                .collect(),
            _ => vec![plain],
        }
    }
}

/// By frame; the number of the question while it is not answered.
#[derive(Default)]
struct Names(std::collections::HashMap<Frame, Result<Vec<Named>, usize>>);
