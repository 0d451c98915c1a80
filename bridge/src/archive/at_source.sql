-- Objects whose bytes are on no ledger, because their source keeps them and hands them out itself: this site, or that of the grant.
ALTER TABLE instance ADD COLUMN at_source INTEGER NOT NULL DEFAULT 0;
