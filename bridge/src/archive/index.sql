-- The index of the archive. Times are milliseconds since 1970-01-01 UTC. Digests are raw bytes.
CREATE TABLE study (
  id INTEGER PRIMARY KEY,
  uid TEXT NOT NULL UNIQUE,
  patient_id TEXT NOT NULL,
  patient_issuer TEXT NOT NULL,
  birth_date INTEGER,                  -- YYYYMMDD
  study_date INTEGER,                  -- YYYYMMDD
  accession TEXT NOT NULL,
  study_number TEXT NOT NULL,          -- StudyID (0020,0010)
  attributes BLOB NOT NULL,            -- patient and study attributes, Explicit VR Little Endian, UTF-8
  instances INTEGER NOT NULL DEFAULT 0,
  bytes INTEGER NOT NULL DEFAULT 0,    -- of all its current objects, kept here or not
  received_ms INTEGER NOT NULL,
  changed_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX study_patient ON study(patient_id, patient_issuer);
CREATE INDEX study_date ON study(study_date);
CREATE INDEX study_accession ON study(accession);
CREATE INDEX study_birth ON study(birth_date);

-- Every form under which a study's patient name may be asked for: whole and each component group, in lower case.
CREATE TABLE patient_name (
  folded TEXT NOT NULL,
  study INTEGER NOT NULL REFERENCES study(id),
  PRIMARY KEY (folded, study)
) STRICT, WITHOUT ROWID;

CREATE TABLE series (
  id INTEGER PRIMARY KEY,
  study INTEGER NOT NULL REFERENCES study(id),
  uid TEXT NOT NULL,
  modality TEXT NOT NULL,
  attributes BLOB NOT NULL,
  instances INTEGER NOT NULL DEFAULT 0,
  UNIQUE (study, uid)
) STRICT;
CREATE INDEX series_uid ON series(uid);
CREATE INDEX series_modality ON series(modality);

CREATE TABLE instance (
  id INTEGER PRIMARY KEY,
  series INTEGER NOT NULL REFERENCES series(id),
  uid TEXT NOT NULL,
  sop_class TEXT NOT NULL,
  transfer_syntax TEXT NOT NULL,
  number INTEGER,                      -- InstanceNumber (0020,0013)
  attributes BLOB NOT NULL,
  meta_bytes INTEGER NOT NULL,         -- offset of the data set in the file
  file_bytes INTEGER NOT NULL,
  file_sha256 BLOB NOT NULL,           -- of the whole Part 10 file, which depends on nothing but the object
  file_crc32 INTEGER,                  -- of the same, to prove a local file at every reading; NULL where it was never here
  received_ms INTEGER NOT NULL,
  calling_ae TEXT NOT NULL,
  shard INTEGER,                       -- directory of the local file; NULL when it was evicted
  file TEXT,
  superseded INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE UNIQUE INDEX instance_uid ON instance(uid) WHERE superseded = 0;
CREATE INDEX instance_series ON instance(series, number);
CREATE INDEX instance_evicted ON instance(series) WHERE file IS NULL AND superseded = 0;

-- Outbox: a study with something to publish. Written in the same transaction as the instance that causes it.
CREATE TABLE outbox (
  study INTEGER PRIMARY KEY REFERENCES study(id),
  due_ms INTEGER NOT NULL,             -- when its quiet time ends
  since_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX outbox_due ON outbox(due_ms);


-- What of a study is on the ledger, or on its way.
CREATE TABLE publication (
  study INTEGER PRIMARY KEY REFERENCES study(id),
  version INTEGER NOT NULL,            -- of the manifest being published, or published last
  study_id BLOB NOT NULL,              -- the study's name on the ledger
  manifest BLOB NOT NULL,              -- encoded, of that version
  manifest_image BLOB NOT NULL,
  begun_ms INTEGER NOT NULL,
  -- What was seen on the ledger, at the configured depth. Nothing else counts.
  defined INTEGER NOT NULL DEFAULT 0,
  announced INTEGER NOT NULL DEFAULT 0, -- newest manifest version that the ledger names
  viewable_ms INTEGER,                 -- when this version was announced: previews and manifest are there
  final_ms INTEGER                     -- when all of it was there; NULL while it is on its way
) STRICT;
CREATE UNIQUE INDEX publication_study_id ON publication(study_id);
CREATE INDEX publication_open ON publication(final_ms) WHERE final_ms IS NULL;

-- Images on the ledger. `plain` holds what is not an object: the manifest and the previews.
CREATE TABLE image (
  id BLOB PRIMARY KEY,
  study INTEGER NOT NULL REFERENCES study(id),
  kind INTEGER NOT NULL,               -- 1 object, 2 preview, 3 manifest
  instance INTEGER REFERENCES instance(id),
  subject TEXT NOT NULL,               -- UID of what it shows or holds
  version INTEGER NOT NULL,            -- of the manifest that brought it
  position INTEGER NOT NULL,           -- in the order of publishing
  epoch INTEGER NOT NULL,
  pieces INTEGER NOT NULL,
  piece_bytes INTEGER NOT NULL,
  sealed_bytes INTEGER NOT NULL,
  root BLOB NOT NULL,
  mode INTEGER NOT NULL,               -- of the pieces: 1 calldata, 2 log, 3 code, 4 storage
  media_type TEXT NOT NULL DEFAULT '',
  sealed INTEGER NOT NULL DEFAULT 0,   -- seen on the ledger with this root
  plain BLOB
) STRICT, WITHOUT ROWID;
CREATE INDEX image_study ON image(study, version, position);
CREATE INDEX image_instance ON image(instance) WHERE instance IS NOT NULL;
CREATE INDEX image_subject ON image(subject, kind);

-- Where each piece is, so that none is ever searched for.
CREATE TABLE piece (
  image BLOB NOT NULL,
  number INTEGER NOT NULL,
  block INTEGER NOT NULL,
  position INTEGER NOT NULL,           -- of the transaction in its block
  entry INTEGER NOT NULL,              -- of the piece in its transaction
  PRIMARY KEY (image, number)
) STRICT, WITHOUT ROWID;
