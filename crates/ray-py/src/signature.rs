//! Whether arguments fit a signature: the quick answer, asked at every call.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

/// Parameters that the quick answer knows at most: one bit for each.
const MOST: usize = 64;

/// The numbers of `inspect.Parameter.kind`.
const POSITIONAL_ONLY: u8 = 0;
const POSITIONAL_OR_KEYWORD: u8 = 1;
const VAR_POSITIONAL: u8 = 2;
const KEYWORD_ONLY: u8 = 3;

/// What a call has to look like to fit the parameters of a function.
#[pyclass(name = "CallShape", module = "ray_rust._internal", frozen)]
pub(crate) struct PyCallShape {
    /// More parameters than this can tell of: it never says that arguments fit.
    too_many: bool,
    /// Parameters that can be given by position.
    positional: usize,
    takes_more_positional: bool,
    takes_any_keyword: bool,
    /// By number, those without a default.
    needed: u64,
    /// By name, the number of those that can be given by name.
    by_name: Py<PyDict>,
    /// Parameters that can be given by position alone have names that are not in `by_name`.
    has_positional_only: bool,
}

#[pymethods]
impl PyCallShape {
    /// Parameters in order: name, `inspect.Parameter.kind`, and whether there is a default.
    #[new]
    fn new(py: Python<'_>, parameters: Vec<(String, u8, bool)>) -> PyResult<Self> {
        let mut shape = Self {
            too_many: parameters.len() > MOST,
            positional: 0,
            takes_more_positional: false,
            takes_any_keyword: false,
            needed: 0,
            by_name: PyDict::new(py).unbind(),
            has_positional_only: false,
        };
        let mut number = 0;
        for (name, kind, has_default) in parameters.into_iter().take(MOST) {
            match kind {
                VAR_POSITIONAL => shape.takes_more_positional = true,
                POSITIONAL_ONLY | POSITIONAL_OR_KEYWORD | KEYWORD_ONLY => {
                    if kind == POSITIONAL_ONLY {
                        shape.has_positional_only = true;
                    } else {
                        shape.by_name.bind(py).set_item(name, number)?;
                    }
                    shape.positional += usize::from(kind != KEYWORD_ONLY);
                    shape.needed |= u64::from(!has_default) << number;
                    number += 1;
                }
                _ => shape.takes_any_keyword = true,
            }
        }
        Ok(shape)
    }

    /// Whether these arguments certainly fit. If not, the signature itself has to be asked, which also
    /// says what is wrong.
    #[pyo3(name = "fits")]
    fn fits_python(&self, args: &Bound<'_, PyTuple>, kwargs: Option<&Bound<'_, PyDict>>) -> PyResult<bool> {
        self.fits(args, kwargs)
    }
}

impl PyCallShape {
    /// As [`PyCallShape::fits_python`].
    pub(crate) fn fits(
        &self,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<bool> {
        let count = args.len();
        if self.too_many || (count > self.positional && !self.takes_more_positional) {
            return Ok(false);
        }
        // Positional parameters come first, so they have the lowest numbers.
        let by_position = count.min(self.positional);
        let mut given = if by_position == MOST { u64::MAX } else { (1 << by_position) - 1 };
        if let Some(kwargs) = kwargs.filter(|kwargs| !kwargs.is_empty()) {
            let by_name = self.by_name.bind(args.py());
            for name in kwargs.keys() {
                let Some(number) = by_name.get_item(name)? else {
                    if self.takes_any_keyword && !self.has_positional_only {
                        continue;
                    }
                    return Ok(false);
                };
                let bit = 1 << number.extract::<u32>()?;
                if given & bit != 0 {
                    return Ok(false);
                }
                given |= bit;
            }
        }
        Ok(self.needed & !given == 0)
    }
}
