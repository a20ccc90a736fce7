BEGIN TRANSACTION;
CREATE TABLE calibration (
	model VARCHAR(64) NOT NULL, 
	protocol VARCHAR(64) NOT NULL, 
	body TEXT NOT NULL, 
	created DATETIME NOT NULL, 
	PRIMARY KEY (model, protocol)
);
INSERT INTO "calibration" VALUES('ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','aba31d0837a38dec5e93f1259afb9120d6aeff154c02a0ecba52121198c2af25','{"fingerprint":"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff","protocol":{"images":2,"seed":0,"guidance":1.5,"top_k":0,"top_p":0.0,"temperature":1.0,"guidance_layer":0,"version":1},"column_variance":[[0.30000000000000004],[0.3333333333333333]],"scale_mass":[[[[1.0]],[[1.0]]]],"band_mass":[[[[[1.0]]],[[[1.0]]]]],"history_top":[[0.0,0.5]],"entropy_ratio":[[1.0,2.0]],"half_distance":[[0.25,0.5]],"low_entropy":[[0.5,0.25]],"skipvar":{"0.84":{"after":0,"feature":"high_frequency","actions":[{"weights":[0.5,-1.0],"bias":0.0,"share":0.25,"scales":[]},{"weights":[0.0,0.0],"bias":0.5,"share":0.75,"scales":[{"run":false,"guidance":"full","shared_attention":[],"shared_ffn":[],"tokens":null}]}]}},"sqnr":[{"qkv":{"8":40.5,"4":20.25}},{}],"seconds":1.5}','2026-11-22 01:25:02.643685');
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
INSERT INTO "evidence" VALUES(1,'quality','6d423bd1ed0f2676d44b63b09a47f74b30754ea1a15a8ff5832258c2c68caa5f','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq',1.5,'{"torch": "2.13.0", "threads": "1"}','2026-11-22 01:25:02.635937');
INSERT INTO "evidence" VALUES(2,'speed','6d423bd1ed0f2676d44b63b09a47f74b30754ea1a15a8ff5832258c2c68caa5f','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','ssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssss',0.25,'{}','2026-11-22 01:25:02.640180');
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
INSERT INTO "policy" VALUES('6d423bd1ed0f2676d44b63b09a47f74b30754ea1a15a8ff5832258c2c68caa5f','{"layers":[{},{}],"scales":[{},{},{}]}','2026-11-22 01:25:02.652942');
INSERT INTO "policy" VALUES('455fe5e20224b74acc04d120d9f19b00d46f1d29f1cc3ba5c6d4ed14fd0d3f53','{"layers":[{"weights":{"fc1":{"bits":8,"group":32},"fc2":{"bits":8,"group":32},"proj":{"bits":8,"group":32},"qkv":{"bits":8,"group":32}}},{}],"scales":[{},{"run":false},{"guidance":"off"}]}','2026-11-22 01:25:02.661134');
CREATE TABLE profile (
	model VARCHAR(64) NOT NULL, 
	part VARCHAR(20) NOT NULL, 
	protocol VARCHAR(64) NOT NULL, 
	body TEXT NOT NULL, 
	created DATETIME NOT NULL, 
	updated DATETIME NOT NULL, 
	PRIMARY KEY (model, part, protocol)
);
INSERT INTO "profile" VALUES('ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','quality','4ac8d35c82c9b3a3b55033f5b63af4749f12604c0cb49d85ac029cf858007954','{"fingerprint":"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff","protocol":{"extractor":"e","images":8,"seed":0,"guidance":1.5,"top_k":0,"top_p":0.0,"settings":"ssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssss","version":1},"effects":{"S2.skip=yes":{"shift":{"value":0.30000000000000004,"error":0.3333333333333333},"distance":{"value":0.5,"error":0.25},"nll":null}},"seconds":1.5}','2026-11-22 01:25:02.646730','2026-11-22 01:25:02.646736');
INSERT INTO "profile" VALUES('ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','cost','286d8fe57ac63f08a3858ce25ce78a843bedd9edce2aa21622afcac5446129d5','{"fingerprint":"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff","protocol":{"speed":{"target":{"device":"cpu","dtype":"float32","batch_size":16},"origin":"predicted","machine":"m","backend":"b","repeats":0,"version":1,"attention":"sdpa"},"settings":"ssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssss","version":1},"parts":{"dense":{"latency_ms":0.3333333333333333,"peak_bytes":4.0,"weight_bytes":2.0,"kv_bytes":1.0,"flops":9.0}},"policies":{},"seconds":0.5}','2026-11-22 01:25:02.648234','2026-11-22 01:25:02.648238');
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
INSERT INTO "run" VALUES('first','mnist','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq','ssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssss','{"seed":0}','interrupted','9ca31eedcb3447dc976ab8ff86b79fe0','2026-11-22 01:25:02.630516','2026-11-22 01:25:02.662371');
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
	finished DATETIME, cost FLOAT DEFAULT '0' NOT NULL, 
	PRIMARY KEY (run, number), 
	CONSTRAINT trial_policy_once_per_run UNIQUE (run, policy), 
	FOREIGN KEY(run) REFERENCES run (name) ON DELETE CASCADE, 
	FOREIGN KEY(policy) REFERENCES policy (digest)
);
INSERT INTO "trial" VALUES('first',0,'6d423bd1ed0f2676d44b63b09a47f74b30754ea1a15a8ff5832258c2c68caa5f','seed:dense','complete','',1,'a','2026-11-22 01:25:02.654030',NULL,'2026-11-22 01:25:02.653395',1.0);
INSERT INTO "trial" VALUES('first',1,'455fe5e20224b74acc04d120d9f19b00d46f1d29f1cc3ba5c6d4ed14fd0d3f53','sampler','fail','why',3,'','2026-11-22 01:25:02.661586',NULL,'2026-11-22 01:25:02.661423',1.0);
CREATE TABLE varsearch_schema (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT varsearch_schema_pkc PRIMARY KEY (version_num)
);
INSERT INTO "varsearch_schema" VALUES('0004');
COMMIT;
