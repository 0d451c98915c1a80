-- Keys of series. Images without one are the manifests of whole studies, and what was sealed before series had keys.
ALTER TABLE image ADD COLUMN series TEXT;
-- What is granted of another site's study: all of it when empty, else the salted hash of a series.
ALTER TABLE foreign_study ADD COLUMN series BLOB NOT NULL DEFAULT x'';
