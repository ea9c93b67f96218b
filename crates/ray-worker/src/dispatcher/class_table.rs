//! The scheduling classes, numbered from 0 in the order in which they were first needed.

use std::ops::{Index, IndexMut};

use ray_core::constraint::Shape;
use ray_core::runtime_env::RuntimeEnv;
use rustc_hash::FxHashMap;

use super::class::Class;

/// See the top of this file.
#[derive(Debug)]
pub(super) struct ClassTable {
    classes: Vec<Class>,
    numbers: FxHashMap<RuntimeEnv, FxHashMap<Shape, u64>>,
    max_in_flight: usize,
}

impl ClassTable {
    /// No classes yet. A lease of each holds `max_in_flight` tasks at most.
    pub(super) fn new(max_in_flight: usize) -> Self {
        Self { classes: Vec::new(), numbers: FxHashMap::default(), max_in_flight }
    }

    /// The number of the class of this shape and environment, which is made if there is none.
    pub(super) fn number_of(&mut self, shape: &Shape, runtime_env: &RuntimeEnv) -> u64 {
        if let Some(&number) = self.numbers.get(runtime_env).and_then(|numbers| numbers.get(shape)) {
            return number;
        }
        let number = self.len();
        self.numbers.entry(runtime_env.clone()).or_default().insert(shape.clone(), number);
        self.classes.push(Class::new(number, shape.clone(), runtime_env.clone(), self.max_in_flight));
        number
    }

    /// How many there are.
    pub(super) const fn len(&self) -> u64 {
        self.classes.len() as u64
    }

    /// The class with this number, which a node has said.
    pub(super) fn get(&self, number: u64) -> Option<&Class> {
        self.classes.get(number as usize)
    }

    /// The same, to change it.
    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Class> {
        self.classes.get_mut(number as usize)
    }

    /// All of them, by number.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Class)> {
        (0..).zip(&self.classes)
    }

    /// All of them, to change them.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Class> {
        self.classes.iter_mut()
    }
}

/// By a number that came from [`ClassTable::number_of`].
impl Index<u64> for ClassTable {
    type Output = Class;

    fn index(&self, number: u64) -> &Class {
        &self.classes[number as usize]
    }
}

impl IndexMut<u64> for ClassTable {
    fn index_mut(&mut self, number: u64) -> &mut Class {
        &mut self.classes[number as usize]
    }
}

#[cfg(test)]
mod tests {
    use ray_core::constraint::Strategy;
    use ray_core::resource::Resources;

    use super::*;

    #[test]
    fn tasks_of_the_same_shape_and_environment_are_of_one_class() {
        let mut table = ClassTable::new(1);
        let plain = Shape::from(Resources::new().with_cpu(1.0).unwrap());
        let spread = plain.clone().with_strategy(Strategy::Spread);
        let none = RuntimeEnv::none();
        let variable = RuntimeEnv::parse(r#"{"env_vars": {"A": "1"}}"#).unwrap();
        let needs = [(&plain, &none), (&spread, &none), (&plain, &variable), (&spread, &variable)];
        for _ in 0..2 {
            let numbers: Vec<u64> = needs.iter().map(|need| table.number_of(need.0, need.1)).collect();
            assert_eq!(numbers, [0, 1, 2, 3]);
        }
        assert_eq!(table.len(), 4);
        for (number, class) in table.iter() {
            assert_eq!((&class.shape, &class.runtime_env), needs[number as usize]);
        }
        assert!(table.get(4).is_none() && table.get_mut(4).is_none());
    }
}
