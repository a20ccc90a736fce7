BEGIN TRANSACTION;
CREATE TABLE evidence (
	id INTEGER NOT NULL, 
	kind VARCHAR(20) NOT NULL, 
	policy VARCHAR(64) NOT NULL, 
	model VARCHAR(64) NOT NULL, 
	protocol VARCHAR(64) NOT NULL, 
	seconds FLOAT NOT NULL, 
	environment JSON NOT NULL, 
	created DATETIME NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT evidence_key UNIQUE (kind, policy, model, protocol)
);
INSERT INTO "evidence" VALUES(1,'quality','6d423bd1ed0f2676d44b63b09a47f74b30754ea1a15a8ff5832258c2c68caa5f','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq',1.5,'{"torch": "2.13.0", "threads": "1"}','2026-11-21 09:22:31.788493');
INSERT INTO "evidence" VALUES(2,'speed','6d423bd1ed0f2676d44b63b09a47f74b30754ea1a15a8ff5832258c2c68caa5f','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','ssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssss',0.25,'{}','2026-11-21 09:22:31.795832');
CREATE TABLE measurement (
	evidence INTEGER NOT NULL, 
	metric VARCHAR(50) NOT NULL, 
	position INTEGER NOT NULL, 
	value FLOAT NOT NULL, 
	low FLOAT, 
	high FLOAT, 
	n INTEGER NOT NULL, 
	origin VARCHAR(20) NOT NULL, 
	note TEXT NOT NULL, 
	PRIMARY KEY (evidence, metric), 
	FOREIGN KEY(evidence) REFERENCES evidence (id) ON DELETE CASCADE
);
INSERT INTO "measurement" VALUES(1,'fid',0,3.00000000000000044408e-01,0.25,3.33333333333333314829e-01,512,'measured','');
INSERT INTO "measurement" VALUES(1,'delta_fid',1,0.0,NULL,NULL,512,'measured','dense is the baseline');
INSERT INTO "measurement" VALUES(2,'latency_ms',0,0.001,NULL,NULL,0,'predicted','');
CREATE TABLE policy (
	digest VARCHAR(64) NOT NULL, 
	body TEXT NOT NULL, 
	created DATETIME NOT NULL, 
	PRIMARY KEY (digest)
);
INSERT INTO "policy" VALUES('6d423bd1ed0f2676d44b63b09a47f74b30754ea1a15a8ff5832258c2c68caa5f','{"layers":[{},{}],"scales":[{},{},{}]}','2026-11-21 09:22:31.800079');
INSERT INTO "policy" VALUES('455fe5e20224b74acc04d120d9f19b00d46f1d29f1cc3ba5c6d4ed14fd0d3f53','{"layers":[{"weights":{"fc1":{"bits":8,"group":32},"fc2":{"bits":8,"group":32},"proj":{"bits":8,"group":32},"qkv":{"bits":8,"group":32}}},{}],"scales":[{},{"run":false},{"guidance":"off"}]}','2026-11-21 09:22:31.806351');
CREATE TABLE run (
	name VARCHAR(200) NOT NULL, 
	model VARCHAR(200) NOT NULL, 
	fingerprint VARCHAR(64) NOT NULL, 
	quality_protocol VARCHAR(64) NOT NULL, 
	speed_protocol VARCHAR(64) NOT NULL, 
	settings TEXT NOT NULL, 
	status VARCHAR(20) NOT NULL, 
	driver VARCHAR(32) NOT NULL, 
	created DATETIME NOT NULL, 
	updated DATETIME NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "run" VALUES('first','mnist','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq','ssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssss','{"seed":0}','interrupted','0c840447d0a94f118d5040adf0f16613','2026-11-21 09:22:31.780804','2026-11-21 09:22:31.806934');
CREATE TABLE trial (
	run VARCHAR(200) NOT NULL, 
	number INTEGER NOT NULL, 
	policy VARCHAR(64) NOT NULL, 
	origin VARCHAR(200) NOT NULL, 
	state VARCHAR(20) NOT NULL, 
	error TEXT NOT NULL, 
	attempts INTEGER NOT NULL, 
	worker VARCHAR(200) NOT NULL, 
	created DATETIME NOT NULL, 
	started DATETIME, 
	finished DATETIME, 
	PRIMARY KEY (run, number), 
	CONSTRAINT trial_policy_once_per_run UNIQUE (run, policy), 
	FOREIGN KEY(run) REFERENCES run (name) ON DELETE CASCADE, 
	FOREIGN KEY(policy) REFERENCES policy (digest)
);
INSERT INTO "trial" VALUES('first',0,'6d423bd1ed0f2676d44b63b09a47f74b30754ea1a15a8ff5832258c2c68caa5f','seed:dense','complete','',1,'a','2026-11-21 09:22:31.800761',NULL,'2026-11-21 09:22:31.800320');
INSERT INTO "trial" VALUES('first',1,'455fe5e20224b74acc04d120d9f19b00d46f1d29f1cc3ba5c6d4ed14fd0d3f53','sampler','fail','why',3,'','2026-11-21 09:22:31.806581',NULL,'2026-11-21 09:22:31.806489');
CREATE TABLE varsearch_schema (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT varsearch_schema_pkc PRIMARY KEY (version_num)
);
INSERT INTO "varsearch_schema" VALUES('0001');
COMMIT;
