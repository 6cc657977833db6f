set -u
export PYTHONPATH=$PWD:$PWD/backends OPENBLAS_NUM_THREADS=2 OMP_NUM_THREADS=2 MKL_NUM_THREADS=2 PYTHONUNBUFFERED=1
lscpu | grep -E "Model name|^CPU\(s\)"; python3 --version; nproc
PIN="taskset -c 2,3"
$PIN timeout 280 python3 tools/bench_cpu --repeat 3 2>/dev/null
echo "== int4 at 4 x 16 rows and others done"
timeout 120 python3 tools/make_random_model --size 1.3b --out /tmp/o13.h5 --dtype float16 --quantize none
printf '{"prompt": [2, 100, 200, 300, 400, 500, 600, 700]}\n' > /tmp/p.jsonl
sync; echo 3 > /proc/sys/vm/drop_caches
cat > /tmp/rss.py <<'P'
import resource,subprocess,sys,time
t=time.time(); r=subprocess.run(sys.argv[1:]); print("rc",r.returncode,"wall_s",round(time.time()-t,2),"peak_rss_mib",resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss//1024)
P
$PIN python3 /tmp/rss.py python3 -m flexref generate --model /tmp/o13.h5 --input /tmp/p.jsonl --max-new-tokens 8 --host-mem-gib 0.5 --device-mem-gib 0.25 --disk-dir /tmp --trace /tmp/tr.json
python3 .measure/overlap.py /tmp/tr.json
$PIN python3 /tmp/rss.py python3 -m flexref generate --model /tmp/o13.h5 --input /tmp/p.jsonl --max-new-tokens 8 --host-mem-gib 0.5 --device-mem-gib 0.25 --disk-dir /tmp --no-overlap 2>&1 | tail -3
rm /tmp/o13.h5
timeout 120 python3 tools/make_random_model --size 1.3b --out /tmp/o13 --dtype float16
$PIN python3 /tmp/rss.py python3 -m flexref convert /tmp/o13 /tmp/o13i.h5 --quantize int4
mkdir /tmp/cp; sync; t0=$(date +%s.%N); cp -r /tmp/o13/* /tmp/cp/; sync; t1=$(date +%s.%N); echo "plain copy s: $(echo "$t1 - $t0" | bc -l 2>/dev/null || python3 -c "print($t1-$t0)")"
$PIN python3 /tmp/rss.py python3 -m flexref generate --model /tmp/o13i.h5 --input /tmp/p.jsonl --max-new-tokens 8 2>&1 | tail -3
