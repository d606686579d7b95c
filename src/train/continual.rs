//! Continual learning: the scores of every task before the first stage of a run and after each.
//!
//! With `R[i][j]`, the score on task `j` after stage `i`, and `N` stages, one for each task:
//! `OP = (1/N) Σ_j R[N][j]` and `BWT = (1/N) Σ_j (R[N][j] − R[j][j])`, the term of the last task, 0, among them.
//! Source: TRACE, Wang et al. 2023, arXiv:2310.06762; averaged over all `N` as in Half Fine-Tuning, arXiv:2404.18466.

use serde::{Deserialize, Serialize};

use crate::eval::Metric;

/// A file that is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoredFile {
    /// Its name.
    pub name: String,
    /// What is measured on it.
    pub metric: Metric,
}

/// The scores so far.
#[derive(Debug, Clone, PartialEq)]
pub struct Continual {
    files: Vec<ScoredFile>,
    tasks: usize,
    /// One score for each file: first those before the first stage, then those after each.
    scores: Vec<Vec<f64>>,
}

/// As it is kept between two processes of a run. A number that is not finite is null.
#[derive(Serialize, Deserialize)]
struct Document {
    files: Vec<String>,
    metrics: Vec<String>,
    scores: Vec<Vec<Option<f64>>>,
}

impl Continual {
    /// No scores yet of `files`: one for each of the `tasks` stages in their order, then others.
    ///
    /// # Panics
    /// When there are fewer files than tasks.
    pub(super) fn new(files: Vec<ScoredFile>, tasks: usize) -> Self {
        assert!(tasks <= files.len(), "each task has a file");
        Self { files, tasks, scores: Vec::new() }
    }

    /// Takes the scores of a text that [`Continual::to_json`] wrote; says why where it cannot.
    pub(super) fn read(&mut self, text: &str) -> Result<(), String> {
        let Document { files, metrics, scores } = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let expected = self.document();
        if (&files, &metrics) != (&expected.files, &expected.metrics) {
            return Err(format!("its files are {files:?}, expected {:?}", expected.files));
        }
        let fits = scores.len() <= self.tasks + 1 && scores.iter().all(|row| row.len() == files.len());
        if !fits {
            return Err(format!("it has other scores than those of {} files", files.len()));
        }
        let number = |score: Option<f64>| score.unwrap_or(f64::NAN);
        self.scores = scores.into_iter().map(|row| row.into_iter().map(number).collect()).collect();
        Ok(())
    }

    /// The scores as text; every finite number is read back to the same bits.
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string_pretty(&self.document()).unwrap_or_default() + "\n"
    }

    fn document(&self) -> Document {
        let finite = |score: &f64| score.is_finite().then_some(*score);
        Document {
            files: self.files.iter().map(|file| file.name.clone()).collect(),
            metrics: self.files.iter().map(|file| file.metric.name().to_owned()).collect(),
            scores: self.scores.iter().map(|row| row.iter().map(finite).collect()).collect(),
        }
    }

    /// Adds the scores after one more stage, those before the first stage first.
    pub(super) fn push(&mut self, scores: Vec<f64>) {
        assert_eq!(scores.len(), self.files.len(), "a score for each file");
        self.scores.push(scores);
    }

    /// How often the files were measured: once before the first stage and once after each.
    pub fn measured(&self) -> usize {
        self.scores.len()
    }

    /// The files of the tasks, in the order of the stages.
    pub fn tasks(&self) -> &[ScoredFile] {
        &self.files[..self.tasks]
    }

    /// The files beyond the tasks.
    pub fn others(&self) -> &[ScoredFile] {
        &self.files[self.tasks..]
    }

    /// All files, those of the tasks first.
    pub fn files(&self) -> &[ScoredFile] {
        &self.files
    }

    /// The scores of file `file`: before the first stage, then after each.
    pub fn of_file(&self, file: usize) -> Vec<f64> {
        self.scores.iter().map(|row| row[file]).collect()
    }

    /// The scores of all tasks before the first stage.
    pub fn base(&self) -> &[f64] {
        self.scores.first().map_or(&[], |row| &row[..self.tasks])
    }

    /// The matrix `R`: the scores of all tasks after each stage.
    pub fn matrix(&self) -> Vec<&[f64]> {
        self.scores.iter().skip(1).map(|row| &row[..self.tasks]).collect()
    }

    /// What all tasks are measured by; `None` where they differ, and their scores have no common mean.
    pub fn metric(&self) -> Option<Metric> {
        let first = self.tasks().first()?.metric;
        self.tasks().iter().all(|task| task.metric == first).then_some(first)
    }

    /// Overall performance, after the last stage: `(1/N) Σ_j R[N][j]`.
    pub fn overall_performance(&self) -> Option<f64> {
        self.after_all().map(|last| mean(last.iter().copied()))
    }

    /// Backward transfer, after the last stage: `(1/N) Σ_j (R[N][j] − R[j][j])`.
    pub fn backward_transfer(&self) -> Option<f64> {
        let last = self.after_all()?;
        let matrix = self.matrix();
        Some(mean(last.iter().enumerate().map(|(task, score)| score - matrix[task][task])))
    }

    /// The scores of the tasks after the last stage, where they have a common metric.
    fn after_all(&self) -> Option<&[f64]> {
        self.metric()?;
        self.matrix().get(self.tasks.checked_sub(1)?).copied()
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    values.sum::<f64>() / n
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(metrics: &[Metric]) -> Vec<ScoredFile> {
        let file = |(at, metric): (usize, &Metric)| ScoredFile { name: format!("f{at}"), metric: *metric };
        metrics.iter().enumerate().map(file).collect()
    }

    /// Three tasks and one more file, computed by hand.
    #[test]
    fn overall_performance_and_backward_transfer_are_means_over_all_tasks() {
        let mut scores = Continual::new(files(&[Metric::Loss; 4]), 3);
        for row in [[4.0, 5.0, 6.0, 2.0], [1.0, 4.5, 6.5, 2.5], [2.0, 1.5, 6.0, 2.75]] {
            scores.push(row.to_vec());
            assert_eq!((scores.overall_performance(), scores.backward_transfer()), (None, None));
        }
        scores.push(vec![2.5, 2.25, 1.0, 3.0]);
        // (2.5 + 2.25 + 1) / 3 and ((2.5 − 1) + (2.25 − 1.5) + 0) / 3.
        assert_eq!(scores.overall_performance(), Some(5.75 / 3.0));
        assert_eq!(scores.backward_transfer(), Some(0.75));
        assert_eq!((scores.base(), scores.of_file(3)), (&[4.0, 5.0, 6.0][..], vec![2.0, 2.5, 2.75, 3.0]));
    }

    #[test]
    fn tasks_of_two_metrics_have_no_mean() {
        let mut scores = Continual::new(files(&[Metric::Loss, Metric::Accuracy]), 2);
        (0..3).for_each(|_| scores.push(vec![1.0, 0.5]));
        assert_eq!((scores.metric(), scores.overall_performance()), (None, None));
    }

    #[test]
    fn scores_are_read_back_to_the_same_bits_for_the_same_files_only() {
        let mut scores = Continual::new(files(&[Metric::Loss; 2]), 1);
        scores.push(vec![0.1 + 0.2, f64::NAN]);
        let mut read = Continual::new(files(&[Metric::Loss; 2]), 1);
        read.read(&scores.to_json()).unwrap();
        assert_eq!(read.scores[0][0].to_bits(), (0.1f64 + 0.2).to_bits());
        assert!(read.scores[0][1].is_nan());
        let mut other = Continual::new(files(&[Metric::Accuracy; 2]), 1);
        assert!(other.read(&scores.to_json()).is_err());
        assert!(read.read("{}").is_err());
    }
}
