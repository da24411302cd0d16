INSERT INTO t (n_prompt,n_gen,avg_ts,model_filename) VALUES (0,1,2,'a''b;c|<script>
"');
INSERT INTO t (a) VALUES ('it's');
