//! Which file needs which, and what follows from it: arrows between rooms, and circles of files inside a
//! room.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::scan::{Facts, Names};

/// Arrows between files, by their places in the list of files.
pub struct Graph<'a> {
    files: &'a [Facts],
    by_module: BTreeMap<&'a [String], usize>,
    arrows: Vec<BTreeSet<usize>>,
}

impl<'a> Graph<'a> {
    pub fn of(files: &'a [Facts]) -> Self {
        let by_module = files.iter().enumerate().map(|(at, file)| (file.module.as_slice(), at)).collect();
        let mut graph = Self { files, by_module, arrows: Vec::new() };
        let shared: BTreeSet<&Names> = files.iter().flat_map(|file| &file.macro_modules).collect();
        let macros: BTreeMap<&str, usize> = files
            .iter()
            .enumerate()
            .filter(|(_, file)| shared.contains(&file.module))
            .flat_map(|(at, file)| file.macros.iter().map(move |name| (name.as_str(), at)))
            .collect();
        graph.arrows = files
            .iter()
            .enumerate()
            .map(|(at, file)| {
                let named = file.paths.iter().filter_map(|path| graph.resolve(path));
                let foreign = file.calls.iter().filter(|name| !file.macros.contains(name));
                let called = foreign.filter_map(|name| macros.get(name.as_str()).copied());
                named.chain(called).filter(|&to| to != at).collect()
            })
            .collect();
        graph
    }

    /// The file in which a path ends, through the doors of modules on the way.
    fn resolve(&self, path: &[String]) -> Option<usize> {
        let mut path = path.to_vec();
        // Doors lead on a few times at most; a ring of doors would not compile.
        for _ in 0..8 {
            let known = (0..=path.len()).rev().find(|&n| self.by_module.contains_key(&path[..n]))?;
            let at = self.by_module[&path[..known]];
            let door = path.get(known).and_then(|name| {
                let doors = &self.files[at].doors;
                doors.iter().find(|(known, _)| known == name).map(|(_, to)| to.clone())
            });
            match door {
                Some(to) if to != path => path = to.into_iter().chain(path.split_off(known + 1)).collect(),
                _ => return Some(at),
            }
        }
        None
    }

    /// Arrows between rooms, with a file that has each.
    pub fn rooms(&self) -> BTreeMap<(String, String), String> {
        let mut rooms = BTreeMap::new();
        for (from, arrows) in self.arrows.iter().enumerate() {
            for &to in arrows {
                let pair = (room(&self.files[from]), room(&self.files[to]));
                // The crate's root holds nothing but the list of rooms.
                if pair.0 != pair.1 && !pair.0.is_empty() && !pair.1.is_empty() {
                    rooms.entry(pair).or_insert_with(|| self.files[from].path.clone());
                }
            }
        }
        rooms
    }

    /// For each file that depends on itself through others in its room, the shortest circle.
    pub fn circles(&self) -> Vec<Vec<&str>> {
        (0..self.files.len()).filter_map(|start| self.way_around(start)).collect()
    }

    fn way_around(&self, start: usize) -> Option<Vec<&str>> {
        let inside = |at: usize| room(&self.files[at]) == room(&self.files[start]);
        let mut from: BTreeMap<usize, usize> = BTreeMap::new();
        let mut waiting = VecDeque::from([start]);
        while let Some(at) = waiting.pop_front() {
            for &to in self.arrows[at].iter().filter(|&&to| inside(to)) {
                if to == start {
                    let mut way = vec![at];
                    while let Some(&before) = from.get(&way[way.len() - 1]) {
                        way.push(before);
                    }
                    return Some(way.iter().rev().map(|&at| self.files[at].path.as_str()).collect());
                }
                if let Entry::Vacant(new) = from.entry(to) {
                    new.insert(at);
                    waiting.push_back(to);
                }
            }
        }
        None
    }
}

/// The room of a file: the first name of its module.
fn room(file: &Facts) -> String {
    file.module.first().cloned().unwrap_or_default()
}

/// Rooms that depend on themselves through others, according to the table alone.
pub fn rings(table: &[(&str, &[&str])]) -> Vec<Names> {
    let next = |room: &str| table.iter().find(|(name, _)| *name == room).map_or(&[][..], |(_, to)| to);
    let reach = |start: &str| {
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        let mut waiting: Vec<&str> = next(start).to_vec();
        while let Some(room) = waiting.pop() {
            if seen.insert(room) {
                waiting.extend(next(room));
            }
        }
        seen
    };
    let rooms = table.iter().map(|(room, _)| *room);
    rooms.filter(|room| reach(room).contains(room)).map(|room| vec![room.to_owned()]).collect()
}
