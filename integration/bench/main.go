// Command bench measures memfs against tmpfs, in the same run on the same machine, with fio.
//
//	go run ./integration/bench [-quick] [-runs N] [-only REGEXP] [-o FILE]
//
// One table results: what tmpfs does, what memfs does, and the ratio, which says more than either figure on a machine
// that others use too. The two are measured in turn and each figure is the median of its runs. There are two parts:
//
//	warm      the data fits, and the host kernel caches it: what the way through FUSE costs
//	paging    the data is four times the memory. tmpfs then is in a memory cgroup of that size with a swap file; memfs
//	          has its page file. Both files are on the same disk, in -dir.
//
// It needs root, fio, and for the second part the right to swapon(8) and a memory cgroup, of version 1 or 2. It unmounts
// and removes what it made, the swap file first of all, also when it is interrupted. With -o the measurements are written
// as Go benchmark results besides, for benchstat.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var (
	quick   = flag.Bool("quick", false, "short runs: the shape, not the figures")
	runs    = flag.Int("runs", 3, "how often each row is measured")
	only    = flag.String("only", "", "measure only the rows that match this `regexp`")
	baseDir = flag.String("dir", "/var/tmp", "`directory` on the disk that takes page file and swap file")
	results = flag.String("o", "", "also write the measurements to `FILE`, in the format that benchstat reads")
)

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// row is one line of the table.
type row struct {
	name   string
	target float64  // the ratio that the project wants; 0 is none
	args   []string // of fio; --filename, --size and --runtime are added
	size   int64    // of the file, in MiB
	fresh  bool     // the file is made anew by the measurement itself
	warm   bool     // the file is read once before
	ramp   time.Duration
	time   time.Duration // 0: until the file is through
	unit   string        // "MB/s" or "k/s"
}

var warmRows = []row{
	{name: "read 4 KiB random, warm", target: 0.9, args: []string{"--rw=randread", "--bs=4k"}, size: 256, warm: true, time: 8 * time.Second, unit: "k/s"},
	{name: "read 1 MiB sequential, warm", target: 0.9, args: []string{"--rw=read", "--bs=1m"}, size: 256, warm: true, time: 8 * time.Second, unit: "MB/s"},
	{name: "read 4 KiB sequential, warm", args: []string{"--rw=read", "--bs=4k"}, size: 256, warm: true, time: 8 * time.Second, unit: "MB/s"},
	{name: "write 4 KiB sequential", target: 0.2, args: []string{"--rw=write", "--bs=4k"}, size: 512, fresh: true, unit: "MB/s"},
	{name: "write 1 MiB sequential", target: 0.2, args: []string{"--rw=write", "--bs=1m"}, size: 512, fresh: true, unit: "MB/s"},
	{name: "write 4 KiB sequential + fsync", args: []string{"--rw=write", "--bs=4k", "--end_fsync=1"}, size: 512, fresh: true, unit: "MB/s"},
	{name: "write 1 MiB sequential + fsync", args: []string{"--rw=write", "--bs=1m", "--end_fsync=1"}, size: 512, fresh: true, unit: "MB/s"},
}

var pagingRows = []row{
	{name: "write 1 MiB sequential, 4 × memory", target: 0.7, args: []string{"--rw=write", "--bs=1m", "--end_fsync=1"}, size: 1024, fresh: true, unit: "MB/s"},
	{name: "read 1 MiB sequential, 4 × memory", target: 1.5, args: []string{"--rw=read", "--bs=1m"}, size: 1024, unit: "MB/s"},
	{name: "read 4 KiB Zipf 1.1, 4 × memory", target: 0.7, args: []string{"--rw=randread", "--bs=4k", "--random_distribution=zipf:1.1"},
		size: 1024, ramp: 5 * time.Second, time: 15 * time.Second, unit: "k/s"},
	{name: "read 4 KiB uniform, 4 × memory", args: []string{"--rw=randread", "--bs=4k"}, size: 1024, ramp: 2 * time.Second, time: 10 * time.Second, unit: "k/s"},
}

// fileSystem is one of the two that are compared.
type fileSystem struct {
	name   string
	dir    string
	prefix []string // what a program is started with, to be in the file system's memory cgroup
}

// measured are the results of one row, by file system.
type measured struct {
	value map[string][]float64
	p99   map[string][]float64 // of a request, in µs
}

func run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("it mounts, and needs root for it")
	}
	if _, err := exec.LookPath("fio"); err != nil {
		return fmt.Errorf("%w: apt-get install fio", err)
	}
	pattern, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(*baseDir, "memfs-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "memfs")
	if err := command(ctx, "go", "build", "-o", binary, "memfs/cmd/memfs"); err != nil {
		return err
	}
	var out *os.File
	if *results != "" {
		if out, err = os.Create(*results); err != nil {
			return err
		}
		defer out.Close()
	}
	fmt.Printf("%-36s %14s %14s %7s %7s\n", "operation", "tmpfs", "memfs", "ratio", "target")
	if err := part(ctx, dir, binary, pattern, warmRows, 0, out); err != nil {
		return err
	}
	return part(ctx, dir, binary, pattern, pagingRows, 256, out)
}

// part measures some rows, with the given memory for both in MiB, 0 for plenty.
func part(ctx context.Context, dir, binary string, pattern *regexp.Regexp, rows []row, memory int, out *os.File) (err error) {
	rows = slices.DeleteFunc(slices.Clone(rows), func(r row) bool { return !pattern.MatchString(r.name) })
	if len(rows) == 0 {
		return nil
	}
	var undo []func() error
	defer func() {
		for _, f := range slices.Backward(undo) {
			err = errors.Join(err, f())
		}
	}()

	tmpfs := fileSystem{name: "tmpfs", dir: filepath.Join(dir, "tmpfs")}
	memfs := fileSystem{name: "memfs", dir: filepath.Join(dir, "mnt")}
	for _, d := range []string{tmpfs.dir, memfs.dir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
		undo = append(undo, func() error { return os.Remove(d) })
	}
	mountMemory := "2G"
	if memory > 0 {
		mountMemory = fmt.Sprintf("%dM", memory)
		swapFile := filepath.Join(dir, "swap")
		if err := swapOn(ctx, swapFile); err != nil {
			return err
		}
		undo = append(undo, func() error { return swapOff(swapFile) })
		group, err := newCgroup(memory)
		if err != nil {
			return err
		}
		undo = append(undo, func() error { return os.Remove(group) })
		tmpfs.prefix = []string{"sh", "-c", `echo $$ > "$0/cgroup.procs" && exec "$@"`, group}
	}
	if err := unix.Mount("tmpfs", tmpfs.dir, "tmpfs", 0, "size=3g"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	undo = append(undo, func() error { return unix.Unmount(tmpfs.dir, 0) })
	if err := command(ctx, binary, "mount", "--memory", mountMemory, "--pagefile", filepath.Join(dir, "pagefile")+",size=3G", memfs.dir); err != nil {
		return err
	}
	undo = append(undo, func() error { return command(context.Background(), binary, "umount", memfs.dir) })

	figures := make([]measured, len(rows))
	for i := range figures {
		figures[i] = measured{map[string][]float64{}, map[string][]float64{}}
	}
	n := *runs
	if *quick {
		n = 1
	}
	for range n {
		// The two in turn at every row, so that a machine that others use too slows both down.
		for i, r := range rows {
			for _, fs := range []fileSystem{tmpfs, memfs} {
				value, p99, err := measure(ctx, fs, r)
				if err != nil {
					return fmt.Errorf("%s on %s: %w", r.name, fs.name, err)
				}
				figures[i].value[fs.name] = append(figures[i].value[fs.name], value)
				figures[i].p99[fs.name] = append(figures[i].p99[fs.name], p99)
				if out != nil {
					name := strings.NewReplacer(" ", "_", ",", "", "×", "x").Replace(r.name)
					fmt.Fprintf(out, "Benchmark%s/fs=%s 1 %.2f %s %.1f p99-us\n", strings.ToUpper(name[:1])+name[1:], fs.name, value, r.unit, p99)
				}
			}
		}
	}
	for i, r := range rows {
		a, b := figures[i].value["tmpfs"], figures[i].value["memfs"]
		var ratios []float64 // of two measurements one after the other
		for run := range a {
			ratios = append(ratios, b[run]/a[run])
		}
		target, verdict := "", ""
		if r.target > 0 {
			target = fmt.Sprintf("%.1f", r.target)
			if median(ratios) < r.target {
				verdict = "  below"
			}
		}
		fmt.Printf("%-36s %9.1f %-4s %9.1f %-4s %7.2f %7s%s\n", r.name, median(a), r.unit, median(b), r.unit, median(ratios), target, verdict)
		if r.time > 0 {
			fmt.Printf("%-36s %9.1f µs   %9.1f µs\n", "    99 % of requests within", median(figures[i].p99["tmpfs"]), median(figures[i].p99["memfs"]))
		}
	}
	return nil
}

// measure runs one row on one file system.
func measure(ctx context.Context, fs fileSystem, r row) (value, p99 float64, err error) {
	file := filepath.Join(fs.dir, "file")
	size := r.size
	if *quick {
		r.time, r.ramp = r.time/4, r.ramp/4
	}
	common := []string{"fio", "--name=" + fs.name, "--filename=" + file, fmt.Sprintf("--size=%dm", size), "--ioengine=psync",
		"--output-format=json", "--randrepeat=1", "--thread", "--invalidate=0", "--fallocate=none"}
	if r.fresh {
		if err := os.RemoveAll(file); err != nil {
			return 0, 0, err
		}
	} else if st, err := os.Stat(file); err != nil || st.Size() < size<<20 {
		if _, err := fio(ctx, fs, append(slices.Clone(common), "--rw=write", "--bs=1m", "--end_fsync=1")); err != nil {
			return 0, 0, err
		}
	}
	if r.warm {
		if _, err := fio(ctx, fs, append(slices.Clone(common), "--rw=read", "--bs=1m", "--loops=2")); err != nil {
			return 0, 0, err
		}
	}
	args := append(common, r.args...)
	if r.time > 0 {
		args = append(args, "--time_based", fmt.Sprintf("--runtime=%dms", r.time.Milliseconds()))
	}
	if r.ramp > 0 {
		args = append(args, fmt.Sprintf("--ramp_time=%dms", r.ramp.Milliseconds()))
	}
	job, err := fio(ctx, fs, args)
	if err != nil {
		return 0, 0, err
	}
	side := job.Read
	if strings.Contains(strings.Join(r.args, " "), "rw=write") {
		side = job.Write
	}
	value = side.IOPS / 1000
	if r.unit == "MB/s" {
		value = side.Bytes / 1e6
	}
	return value, side.Latency.Percentile["99.000000"] / 1000, nil
}

// fioSide is what fio's JSON says of reads or of writes.
type fioSide struct {
	Bytes   float64 `json:"bw_bytes"` // a second
	IOPS    float64 `json:"iops"`
	Latency struct {
		Percentile map[string]float64 `json:"percentile"` // ns
	} `json:"clat_ns"`
}

type fioJob struct {
	Read  fioSide `json:"read"`
	Write fioSide `json:"write"`
	Error int     `json:"error"`
}

// fio runs fio with the given arguments, in the file system's cgroup.
func fio(ctx context.Context, fs fileSystem, args []string) (fioJob, error) {
	args = append(slices.Clone(fs.prefix), args...)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return fioJob{}, fmt.Errorf("%s: %w\n%s%s", strings.Join(args, " "), err, out, stderr.Bytes())
	}
	var report struct {
		Jobs []fioJob `json:"jobs"`
	}
	// fio may write notes before its JSON.
	if at := bytes.IndexByte(out, '{'); at > 0 {
		out = out[at:]
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return fioJob{}, fmt.Errorf("output of fio: %w", err)
	}
	if len(report.Jobs) != 1 || report.Jobs[0].Error != 0 {
		return fioJob{}, fmt.Errorf("fio reports %+v", report.Jobs)
	}
	return report.Jobs[0], nil
}

// swapOn makes a swap file and has the kernel use it.
func swapOn(ctx context.Context, name string) error {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, 2<<30)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = command(ctx, "mkswap", name)
	}
	if err == nil {
		err = command(ctx, "swapon", name)
	}
	if err != nil {
		_ = os.Remove(name)
	}
	return err
}

func swapOff(name string) error {
	return errors.Join(command(context.Background(), "swapoff", name), os.Remove(name))
}

// newCgroup makes a memory cgroup of so many MiB, of the version that is mounted here.
func newCgroup(mib int) (string, error) {
	limit := fmt.Appendf(nil, "%d", int64(mib)<<20)
	name := fmt.Sprintf("memfs-bench-%d", os.Getpid())
	if v1 := "/sys/fs/cgroup/memory"; exists(filepath.Join(v1, "memory.limit_in_bytes")) {
		group := filepath.Join(v1, name)
		if err := os.Mkdir(group, 0o755); err != nil {
			return "", err
		}
		// What a program swaps in again must not stay with the group that the kernel started with.
		return group, errors.Join(
			os.WriteFile(filepath.Join(group, "memory.limit_in_bytes"), limit, 0o644),
			os.WriteFile(filepath.Join(group, "memory.swappiness"), []byte("60"), 0o644))
	}
	root := "/sys/fs/cgroup"
	if !exists(filepath.Join(root, "cgroup.controllers")) {
		return "", errors.New("no memory cgroup is mounted at /sys/fs/cgroup")
	}
	if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+memory"), 0o644); err != nil {
		return "", err
	}
	group := filepath.Join(root, name)
	if err := os.Mkdir(group, 0o755); err != nil {
		return "", err
	}
	return group, os.WriteFile(filepath.Join(group, "memory.max"), limit, 0o644)
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// command runs a program whose output matters only when it fails.
func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}
