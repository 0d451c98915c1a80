-- Objects whose sealed bytes are in IPFS: the image on the ledger holds their name in its one piece.
ALTER TABLE image ADD COLUMN cid BLOB;
ALTER TABLE image ADD COLUMN cid_bytes INTEGER;              -- of the file that it names
ALTER TABLE image ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0; -- this site's node was seen to keep it
CREATE INDEX image_cid ON image(pinned) WHERE cid IS NOT NULL;
-- Names of what is to be let go, until it was.
CREATE TABLE ipfs_removal (cid BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TRIGGER image_gone AFTER DELETE ON image WHEN old.cid IS NOT NULL BEGIN
  INSERT OR IGNORE INTO ipfs_removal (cid) VALUES (old.cid);
END;
CREATE TRIGGER image_again AFTER INSERT ON image WHEN new.cid IS NOT NULL BEGIN
  DELETE FROM ipfs_removal WHERE cid = new.cid;
END;
