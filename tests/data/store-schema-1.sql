BEGIN TRANSACTION;
CREATE TABLE events (
	seq INTEGER NOT NULL, 
	kind VARCHAR(40) NOT NULL, 
	body JSON NOT NULL, 
	at DATETIME NOT NULL, 
	PRIMARY KEY (seq)
);
INSERT INTO "events" VALUES(1,'CampaignStarted','{"campaign": "campaign", "settings": {}, "table": "table", "trees": "trees"}','2026-11-22 18:40:30.510321');
INSERT INTO "events" VALUES(2,'PageIssued','{"page": "9b462e060611449a60ea", "attempt": 1, "category": "x", "questions": ["4ce4bcb89eac3cc96e08", "40ff110012ccfe11c277", "ce2bb9f9337611027ea7", "e26c4a58148be660aa1e", "2fbc7e1112715fbf936d"], "clusters": ["x/54"]}','2026-11-22 18:40:30.539115');
INSERT INTO "events" VALUES(3,'PageIssued','{"page": "7986bccadc59bbe658b0", "attempt": 1, "category": "x", "questions": ["14a60bde76c07410bff4", "68299222c4ac23ab2d60", "3954e3a619211b95c08b"], "clusters": ["x/54"]}','2026-11-22 18:40:30.539115');
INSERT INTO "events" VALUES(4,'PageIssued','{"page": "49b06318d0488ca79f72", "attempt": 1, "category": "y", "questions": ["da28abf4d20f5866f27f", "ffc71bddbb9ea2629504", "da3ce2978949ee338e06", "9370f85b0c10d46fe4a3", "01389cd5b582c7bec73b"], "clusters": ["y/22"]}','2026-11-22 18:40:30.539115');
INSERT INTO "events" VALUES(5,'PageIssued','{"page": "2e80201848cdd58ffe0e", "attempt": 1, "category": "y", "questions": ["dea8b746031dc59a5b43", "e243dbad014ea3dc12f5", "9c5ea5fbd08289de50f3"], "clusters": ["y/22"]}','2026-11-22 18:40:30.539115');
INSERT INTO "events" VALUES(6,'PagePosted','{"page": "9b462e060611449a60ea", "task": 26}','2026-11-22 18:40:30.588950');
INSERT INTO "events" VALUES(7,'PagePosted','{"page": "7986bccadc59bbe658b0", "task": 27}','2026-11-22 18:40:30.588950');
INSERT INTO "events" VALUES(8,'PagePosted','{"page": "49b06318d0488ca79f72", "task": 28}','2026-11-22 18:40:30.588950');
INSERT INTO "events" VALUES(9,'PagePosted','{"page": "2e80201848cdd58ffe0e", "task": 29}','2026-11-22 18:40:30.588950');
INSERT INTO "events" VALUES(10,'PageAnswered','{"page": "9b462e060611449a60ea", "annotation": 30, "version": "2026-01-01T00:00:00.008000Z", "by": 2, "seconds": 1.0, "verdicts": ["yes", "yes", "no", "no", "no"]}','2026-11-22 18:40:30.589852');
INSERT INTO "events" VALUES(11,'PageAnswered','{"page": "7986bccadc59bbe658b0", "annotation": 31, "version": "2026-01-01T00:00:00.010000Z", "by": 2, "seconds": 1.0, "verdicts": ["yes", "yes", "yes"]}','2026-11-22 18:40:30.589852');
INSERT INTO "events" VALUES(12,'PageAnswered','{"page": "49b06318d0488ca79f72", "annotation": 32, "version": "2026-01-01T00:00:00.012000Z", "by": 2, "seconds": 1.0, "verdicts": ["yes", "yes", "yes", "no", "no"]}','2026-11-22 18:40:30.589852');
INSERT INTO "events" VALUES(13,'PageAnswered','{"page": "2e80201848cdd58ffe0e", "annotation": 33, "version": "2026-01-01T00:00:00.014000Z", "by": 2, "seconds": 1.0, "verdicts": ["no", "no", "no"]}','2026-11-22 18:40:30.589852');
INSERT INTO "events" VALUES(14,'Decided','{"cluster": "x/54", "decision": "split", "asked": 8, "right": 5}','2026-11-22 18:40:30.594945');
INSERT INTO "events" VALUES(15,'Decided','{"cluster": "y/22", "decision": "split", "asked": 8, "right": 3}','2026-11-22 18:40:30.594945');
INSERT INTO "events" VALUES(16,'PageIssued','{"page": "f4512b007704880ac81f", "attempt": 1, "category": "x", "questions": ["c4c5e1c2e5aa9c9fd4a8", "60841dca75074712285a", "1a73bfe51ccdd6015139", "6e65be2fa6d3433f68ff", "3390ce0fa5150bebd0d6"], "clusters": ["x/52"]}','2026-11-22 18:40:30.595745');
INSERT INTO "events" VALUES(17,'PageIssued','{"page": "4fa734e2daf9ff605a3b", "attempt": 1, "category": "x", "questions": ["5058c2a9a57f55be6e2d", "4446fc4bbb274f4cdf2b", "5312b3ca4bed17926d91"], "clusters": ["x/52", "x/53"]}','2026-11-22 18:40:30.595745');
INSERT INTO "events" VALUES(18,'PageIssued','{"page": "09e7cbb18c8daca88394", "attempt": 1, "category": "y", "questions": ["4af542bbb3d62351ccd7", "b915b5db987f78b73455", "a24806b74d545b456090", "b010c21cf796589e513e"], "clusters": ["y/20", "y/21"]}','2026-11-22 18:40:30.595745');
INSERT INTO "events" VALUES(19,'PagePosted','{"page": "f4512b007704880ac81f", "task": 46}','2026-11-22 18:40:30.624724');
INSERT INTO "events" VALUES(20,'PagePosted','{"page": "4fa734e2daf9ff605a3b", "task": 47}','2026-11-22 18:40:30.624724');
INSERT INTO "events" VALUES(21,'PagePosted','{"page": "09e7cbb18c8daca88394", "task": 48}','2026-11-22 18:40:30.624724');
INSERT INTO "events" VALUES(22,'WriteIntended','{"task": 7, "digest": "d42da1d15ef273e81e25"}','2026-11-22 18:40:30.628105');
INSERT INTO "events" VALUES(23,'WriteIntended','{"task": 8, "digest": "7be76edba1d528affac0"}','2026-11-22 18:40:30.628105');
INSERT INTO "events" VALUES(24,'WriteIntended','{"task": 9, "digest": "cbaf924e1f9300eafff1"}','2026-11-22 18:40:30.628105');
INSERT INTO "events" VALUES(25,'MasksWritten','{"image": "/data/upload/1/00000004-0.png", "task": 7, "annotation": 52, "masks": ["4ce4bcb89eac3cc96e08", "40ff110012ccfe11c277"]}','2026-11-22 18:40:30.629330');
INSERT INTO "events" VALUES(26,'MasksWritten','{"image": "/data/upload/1/00000005-1.png", "task": 8, "annotation": 53, "masks": ["14a60bde76c07410bff4", "68299222c4ac23ab2d60", "3954e3a619211b95c08b", "da3ce2978949ee338e06"]}','2026-11-22 18:40:30.629330');
INSERT INTO "events" VALUES(27,'MasksWritten','{"image": "/data/upload/1/00000006-2.png", "task": 9, "annotation": 54, "masks": ["da28abf4d20f5866f27f", "ffc71bddbb9ea2629504"]}','2026-11-22 18:40:30.629330');
INSERT INTO "events" VALUES(28,'ImageTaken','{"image": "/data/upload/1/00000006-2.png"}','2026-11-22 18:40:30.630435');
INSERT INTO "events" VALUES(29,'PageAnswered','{"page": "f4512b007704880ac81f", "annotation": 56, "version": "2026-01-01T00:00:00.027000Z", "by": 2, "seconds": 1.0, "verdicts": ["yes", "yes", "yes", "yes", "yes"]}','2026-11-22 18:40:30.631345');
INSERT INTO "events" VALUES(30,'PageAnswered','{"page": "4fa734e2daf9ff605a3b", "annotation": 57, "version": "2026-01-01T00:00:00.029000Z", "by": 2, "seconds": 1.0, "verdicts": ["yes", "no", "yes"]}','2026-11-22 18:40:30.631345');
INSERT INTO "events" VALUES(31,'PageAnswered','{"page": "09e7cbb18c8daca88394", "annotation": 58, "version": "2026-01-01T00:00:00.031000Z", "by": 2, "seconds": 1.0, "verdicts": ["yes", "yes", "yes", "no"]}','2026-11-22 18:40:30.631345');
INSERT INTO "events" VALUES(32,'Decided','{"cluster": "x/52", "decision": "accept", "asked": 8, "right": 8}','2026-11-22 18:40:30.631978');
INSERT INTO "events" VALUES(33,'Decided','{"cluster": "x/53", "decision": "split", "asked": 8, "right": 4}','2026-11-22 18:40:30.631978');
INSERT INTO "events" VALUES(34,'Decided','{"cluster": "y/20", "decision": "accept", "asked": 6, "right": 6}','2026-11-22 18:40:30.631978');
INSERT INTO "events" VALUES(35,'Decided','{"cluster": "y/21", "decision": "reject", "asked": 6, "right": 0}','2026-11-22 18:40:30.631978');
INSERT INTO "events" VALUES(36,'PageIssued','{"page": "af02a9cddd03b979d829", "attempt": 1, "category": "x", "questions": ["36d893c1d0551c6c4976", "814a1dc5babbe8229fd4", "19f20e10f4f231ad6d8a", "324f80ecd968a4453cba", "6323ee01d6eea87e5f3b"], "clusters": ["x/50", "x/51"]}','2026-11-22 18:40:30.632501');
INSERT INTO "events" VALUES(37,'PageIssued','{"page": "eeeaad9c6254374b1cf6", "attempt": 1, "category": "x", "questions": ["ffaf1f82d09888cb0724", "15a8efbb487ba2b2e120", "f2c327f1063452da8751"], "clusters": ["x/51"]}','2026-11-22 18:40:30.632501');
INSERT INTO "events" VALUES(38,'PagePosted','{"page": "af02a9cddd03b979d829", "task": 67}','2026-11-22 18:40:30.667131');
INSERT INTO "events" VALUES(39,'PagePosted','{"page": "eeeaad9c6254374b1cf6", "task": 68}','2026-11-22 18:40:30.667131');
INSERT INTO "events" VALUES(40,'WriteIntended','{"task": 7, "digest": "a0ac0166e674f46e2b97"}','2026-11-22 18:40:30.677600');
INSERT INTO "events" VALUES(41,'WriteIntended','{"task": 8, "digest": "d716aa36bee955891748"}','2026-11-22 18:40:30.677600');
INSERT INTO "events" VALUES(42,'MasksWritten','{"image": "/data/upload/1/00000004-0.png", "task": 7, "annotation": 52, "masks": ["c4c5e1c2e5aa9c9fd4a8", "4ce4bcb89eac3cc96e08", "60841dca75074712285a", "1a73bfe51ccdd6015139", "9247418b6707582f504b", "5058c2a9a57f55be6e2d", "40ff110012ccfe11c277", "d1a4d356b5472f0802ba", "6e65be2fa6d3433f68ff", "3390ce0fa5150bebd0d6"]}','2026-11-22 18:40:30.683158');
INSERT INTO "events" VALUES(43,'MasksWritten','{"image": "/data/upload/1/00000005-1.png", "task": 8, "annotation": 53, "masks": ["14a60bde76c07410bff4", "68299222c4ac23ab2d60", "5312b3ca4bed17926d91", "3954e3a619211b95c08b", "4af542bbb3d62351ccd7", "da3ce2978949ee338e06", "b915b5db987f78b73455", "a24806b74d545b456090"]}','2026-11-22 18:40:30.683158');
INSERT INTO "events" VALUES(44,'PageAnswered','{"page": "af02a9cddd03b979d829", "annotation": 69, "version": "2026-01-01T00:00:00.039000Z", "by": 2, "seconds": 1.0, "verdicts": ["no", "no", "no", "no", "yes"]}','2026-11-22 18:40:30.684891');
INSERT INTO "events" VALUES(45,'PageAnswered','{"page": "eeeaad9c6254374b1cf6", "annotation": 70, "version": "2026-01-01T00:00:00.041000Z", "by": 2, "seconds": 1.0, "verdicts": ["yes", "yes", "yes"]}','2026-11-22 18:40:30.684891');
INSERT INTO "events" VALUES(46,'Decided','{"cluster": "x/50", "decision": "reject", "asked": 8, "right": 0}','2026-11-22 18:40:30.685378');
INSERT INTO "events" VALUES(47,'Decided','{"cluster": "x/51", "decision": "accept", "asked": 8, "right": 8}','2026-11-22 18:40:30.685378');
INSERT INTO "events" VALUES(48,'WriteIntended','{"task": 8, "digest": "a944c1c347408976bb78"}','2026-11-22 18:40:30.694140');
INSERT INTO "events" VALUES(49,'MasksWritten','{"image": "/data/upload/1/00000005-1.png", "task": 8, "annotation": 53, "masks": ["14a60bde76c07410bff4", "68299222c4ac23ab2d60", "5312b3ca4bed17926d91", "6323ee01d6eea87e5f3b", "ffaf1f82d09888cb0724", "3954e3a619211b95c08b", "f2c327f1063452da8751", "ff812b83c04add96713b", "15a8efbb487ba2b2e120", "4af542bbb3d62351ccd7", "da3ce2978949ee338e06", "b915b5db987f78b73455", "a24806b74d545b456090"]}','2026-11-22 18:40:30.699488');
CREATE TABLE facts (
	name VARCHAR(40) NOT NULL, 
	value JSON NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "facts" VALUES('schema',1);
INSERT INTO "facts" VALUES('cursor:source','"2026-01-01T00:00:00.038000Z"');
INSERT INTO "facts" VALUES('cursor:verify','"2026-01-01T00:00:00.042000Z"');
INSERT INTO "facts" VALUES('connection','{"server": "http://127.0.0.1:8080", "project": 1, "title": "Gr\u00f6\u00dfe \u201ccells\u201d", "pages": 2, "crops": 3}');
INSERT INTO "facts" VALUES('table','"mask-table-0123456789ab"');
INSERT INTO "facts" VALUES('trees','"cluster-trees-0123456789ab"');
CREATE TABLE source_tasks (
	image TEXT NOT NULL, 
	task INTEGER NOT NULL, 
	location TEXT NOT NULL, 
	PRIMARY KEY (image), 
	UNIQUE (task)
);
INSERT INTO "source_tasks" VALUES('/data/upload/1/00000004-0.png',7,'/data/upload/1/00000004-0.png?signed=1');
INSERT INTO "source_tasks" VALUES('/data/upload/1/00000005-1.png',8,'/data/upload/1/00000005-1.png?signed=1');
INSERT INTO "source_tasks" VALUES('/data/upload/1/00000006-2.png',9,'/data/upload/1/00000006-2.png?signed=1');
COMMIT;
