//! Stacks that look the same to people are one to them: calls from two places of a function, of which no line is known, differ in
//! addresses only. Pure.

use std::collections::HashMap;

use crate::trace::growth::{Growth, Place, Stack};

/// The stacks that grow, those that look the same put together, the fastest growth first.
pub(super) fn alike(growth: &Growth) -> Vec<Stack> {
    let mut stacks: Vec<Stack> = Vec::new();
    let mut known: HashMap<Vec<Place>, usize> = HashMap::new();
    for stack in growth.stacks.iter().filter(|stack| stack.bytes_per_hour > 0.0) {
        let at = *known.entry(stack.frames.iter().map(look).collect()).or_insert(stacks.len());
        match stacks.get_mut(at) {
            None => stacks.push(stack.clone()),
            Some(same) => {
                same.bytes_per_hour += stack.bytes_per_hour;
                same.allocations = same.allocations.saturating_add(stack.allocations);
                same.bytes = same.bytes.saturating_add(stack.bytes);
                same.whole &= stack.whole;
            }
        }
    }
    stacks.sort_by(|a, b| b.bytes_per_hour.total_cmp(&a.bytes_per_hour));
    stacks
}

/// What people see of a place: its address only where it has no name.
fn look(place: &Place) -> Place {
    let named = place.function.as_deref().is_some_and(|function| !function.is_empty());
    Place { offset: if named { 0 } else { place.offset }, ..place.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::show::sample;

    #[test]
    fn calls_from_two_places_of_a_function_are_one_unless_their_lines_differ() {
        let mut growth = sample::growth();
        let mut stacks = vec![sample::stack(3.0, &["malloc", "main"]); 4];
        stacks[1].frames[1].offset += 16;
        stacks[2].frames[1].line = Some(7);
        (stacks[3].frames[1].function, stacks[3].bytes_per_hour) = (None, -1.0);
        growth.stacks = [sample::stack(5.0, &["malloc", "other"])].into_iter().chain(stacks).collect();
        let told: Vec<_> =
            alike(&growth).iter().map(|stack| (stack.bytes_per_hour / 1_048_576.0, stack.allocations)).collect();
        assert_eq!(told, [(6.0, 80), (5.0, 40), (3.0, 40)]);
    }
}
