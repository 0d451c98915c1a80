-- Objects whose sealed bytes are in IPFS: the image on the ledger holds their name in its one piece.
ALTER TABLE image ADD COLUMN cid BLOB;
ALTER TABLE image ADD COLUMN cid_bytes INTEGER;                 -- of the file that it names
-- Whether this site's node keeps it: 1 it was seen to, 0 not seen to, -1 what it has was found to be something else.
ALTER TABLE image ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
CREATE INDEX image_cid ON image(cid) WHERE cid IS NOT NULL;
CREATE INDEX image_unpinned ON image(pinned) WHERE cid IS NOT NULL AND pinned <= 0;
-- Names of what is to be let go, until it was. A name goes when nothing here bears it any more: somebody else's manifest may name what is ours.
CREATE TABLE ipfs_removal (cid BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TRIGGER image_gone AFTER DELETE ON image
WHEN old.cid IS NOT NULL AND NOT EXISTS (SELECT 1 FROM image WHERE cid = old.cid) BEGIN
  INSERT OR IGNORE INTO ipfs_removal (cid) VALUES (old.cid);
END;
CREATE TRIGGER image_again AFTER INSERT ON image WHEN new.cid IS NOT NULL BEGIN
  DELETE FROM ipfs_removal WHERE cid = new.cid;
END;
