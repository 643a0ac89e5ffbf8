//! Generations: sealed once, whole, never changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use strata_core::data_paths::DataPaths;
use strata_core::generation::{DATA_FILE, Generation, SCRIPTS_FILE};
use strata_core::scripts::policy::ScriptPolicy;
use strata_core::{GenerationId, limits};

use crate::error::{Context, StoreError};
use crate::read::{names_in, optional, read_limited};
use crate::repository::{ASIDE, discard};
use crate::store::Store;
use crate::temporary;

impl Store {
    pub(crate) fn generation_path(&self, id: &GenerationId) -> PathBuf {
        self.root().join("generations").join(id.to_string())
    }

    /// Whether the generation is sealed.
    pub fn has_generation(&self, id: &GenerationId) -> bool {
        self.generation_path(id).join("layers").exists()
    }

    /// All sealed generations, by id.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn generations(&self) -> Result<Vec<GenerationId>, StoreError> {
        let names = names_in(&self.root().join("generations"))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Reads a generation and compares its content with its id.
    ///
    /// # Errors
    /// It is not there, unreadable or damaged.
    pub fn generation(&self, id: &GenerationId) -> Result<Generation, StoreError> {
        let path = self.generation_path(id);
        if !path.is_dir() {
            return Err(StoreError::NoGeneration(*id));
        }
        let layers = read_limited(&path.join("layers"), limits::GENERATION_BYTES)?;
        let mut definitions = names_in(&path)?.into_iter().filter(|name| name.ends_with(".ldf"));
        let definition = definitions.next().ok_or(StoreError::NoGeneration(*id))?;
        let ldf = read_limited(&path.join(definition), limits::GENERATION_BYTES)?;
        let generation = Generation::parse(&layers, &ldf)
            .map_err(|located| StoreError::Generation { path: path.join("layers"), located })?;
        let generation =
            match optional(read_limited(&path.join(DATA_FILE), limits::GENERATION_BYTES))? {
                None => generation,
                Some(text) => {
                    generation.with_data(DataPaths::parse(&text).map_err(|located| {
                        StoreError::Data { path: path.join(DATA_FILE), located }
                    })?)
                }
            };
        let path_of = |name| path.join(name);
        let generation =
            match optional(read_limited(&path_of(SCRIPTS_FILE), limits::GENERATION_BYTES))? {
                None => generation,
                Some(text) => {
                    generation.with_scripts(ScriptPolicy::parse(&text).map_err(|located| {
                        StoreError::Policy { path: path_of(SCRIPTS_FILE), located }
                    })?)
                }
            };
        let found = generation.id();
        if found != *id {
            return Err(StoreError::Damaged { path, expected: *id, found });
        }
        Ok(generation)
    }

    /// The commit that first produced a generation, as its `commit` file says.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn generation_origin(&self, id: &GenerationId) -> Result<String, StoreError> {
        let text = read_limited(&self.generation_path(id).join("commit"), 1 << 10)?;
        Ok(String::from_utf8_lossy(&text).trim().to_owned())
    }

    /// Seals a generation; `origin` is the commit it comes from. Returns its id
    /// and whether it is new: sealing the same content again writes nothing.
    ///
    /// # Errors
    /// It cannot be written; nothing half-made is visible.
    pub fn seal_generation(
        &self,
        generation: &Generation,
        origin: &str,
    ) -> Result<(GenerationId, bool), StoreError> {
        let id = generation.id();
        let is_new = !self.has_generation(&id);
        self.seal_generations([generation], origin)?;
        Ok((id, is_new))
    }

    /// Seals those generations that are not there yet, with one sync of their contents and
    /// one of their names, however many they are.
    ///
    /// # Errors
    /// One cannot be written; those before it may be there, whole.
    pub fn seal_generations<'a>(
        &self,
        generations: impl IntoIterator<Item = &'a Generation>,
        origin: &str,
    ) -> Result<(), StoreError> {
        let mut staged = BTreeMap::new();
        for generation in generations {
            let id = generation.id();
            if staged.contains_key(&id) || self.has_generation(&id) {
                continue;
            }
            staged.insert(id, self.stage_generation(generation, origin)?);
        }
        let mut places = Vec::new();
        for (id, staged) in &staged {
            let path = self.generation_path(id);
            if !path.exists() {
                places.push((staged.as_path(), path));
                continue;
            }
            // Damaged by hand or by the disk: whole again in one step, since a
            // ring may point here.
            tracing::warn!(generation = %id, "a damaged generation is sealed anew");
            self.disk.exchange_directory(staged, &path)?;
            fs::remove_dir_all(staged).at("remove", staged)?;
        }
        let places: Vec<_> =
            places.iter().map(|(staged, path)| (*staged, path.as_path())).collect();
        self.disk.publish_directories(&places)
    }

    /// Writes a generation where nobody sees it, without a sync: whoever publishes it
    /// syncs its contents.
    pub(crate) fn stage_generation(
        &self,
        generation: &Generation,
        origin: &str,
    ) -> Result<PathBuf, StoreError> {
        let parent = self.root().join("generations");
        let staged = parent.join(temporary::name(temporary::STAGING, generation.id().short()));
        if staged.exists() {
            fs::remove_dir_all(&staged).at("remove", &staged)?;
        }
        fs::create_dir(&staged).at("create", &staged)?;
        let definition = format!("{}.ldf", generation.composition());
        let mut files = generation.further_files();
        files.push(("layers", generation.print_layers()));
        files.push((definition.as_str(), generation.ldf().to_owned()));
        files.push(("commit", format!("{origin}\n")));
        for (name, content) in files {
            self.disk.create_file(&staged.join(name), content.as_bytes(), 0o444)?;
        }
        Ok(staged)
    }

    pub(crate) fn sweep_generations(&self) -> Result<usize, StoreError> {
        let parent = self.root().join("generations");
        let mut swept = temporary::sweep_directories(&parent)?;
        // What was set aside is gone for everybody, whoever set it aside.
        for entry in fs::read_dir(&parent).at("list", &parent)? {
            let entry = entry.at("list", &parent)?;
            if entry.file_name().to_string_lossy().starts_with(ASIDE) {
                discard(&entry.path())?;
                swept += 1;
            }
        }
        Ok(swept)
    }
}
