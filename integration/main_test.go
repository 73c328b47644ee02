package integration

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	suiteDir    string // holds everything that this run makes; on a disk, for page files are opened with O_DIRECT
	memfsBinary string // the command under test
	cannotMount string // why no mount can be made here, or empty
)

func TestMain(m *testing.M) { os.Exit(runSuite(m)) }

// runSuite builds the command, runs the tests and counts what they left behind.
func runSuite(m *testing.M) (code int) {
	flag.Parse()
	base := os.Getenv("TMPDIR")
	if base == "" {
		base = "/var/tmp"
	}
	var err error
	if suiteDir, err = os.MkdirTemp(base, "memfs-integration-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := os.Chmod(suiteDir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		if left := mountsUnder(suiteDir); len(left) > 0 {
			fmt.Fprintf(os.Stderr, "left mounted: %s\n", strings.Join(left, ", "))
			for _, dir := range left {
				_ = unix.Unmount(dir, unix.MNT_DETACH)
			}
			code = 1
			return // removing a tree that may still reach a mount would empty it
		}
		_ = os.RemoveAll(suiteDir)
	}()

	lookAtSources()
	memfsBinary = filepath.Join(suiteDir, "memfs")
	build := []string{"build", "-o", memfsBinary}
	if raceBuild {
		build = append(build, "-race")
	}
	cmd := exec.Command("go", append(build, "memfs/cmd/memfs")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go %s: %v\n%s", strings.Join(build, " "), err, out)
		return 1
	}

	if os.Geteuid() != 0 {
		cannotMount = "the integration tests mount, and need root for it"
	} else if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		cannotMount = err.Error()
	} else {
		f.Close()
	}
	return m.Run()
}

// lookAtSources lets go test see what the command is built from, so that it takes results from its cache only while none
// of that has changed: the tests import none of it.
func lookAtSources() {
	for _, dir := range []string{"cmd", "fs", "mapping", "mm", "go.mod", "go.sum"} {
		_ = filepath.WalkDir(filepath.Join("..", dir), func(name string, _ os.DirEntry, err error) error {
			_, _ = os.Stat(name)
			return nil
		})
	}
}

// needMount skips the test where no mount can be made, and fails it there in CI.
func needMount(t testing.TB) {
	t.Helper()
	if cannotMount != "" {
		cannot(t, cannotMount)
	}
}

// cannot skips the test for want of something, and fails it in CI, where nothing may be wanting.
func cannot(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// scratch is a new directory on a disk that goes with the test.
func scratch(t testing.TB) string {
	t.Helper()
	name := strings.Map(func(r rune) rune {
		if strings.ContainsRune("/ ,=[]", r) { // of which a comma has a meaning in --pagefile
			return '_'
		}
		return r
	}, t.Name())
	dir, err := os.MkdirTemp(suiteDir, name+"-")
	if err != nil {
		t.Fatal(err)
	}
	must(t, os.Chmod(dir, 0o755)) // other users get as far as the permissions under test
	t.Cleanup(func() {
		if len(mountsUnder(dir)) == 0 { // else TestMain reports it
			_ = os.RemoveAll(dir)
		}
	})
	return dir
}

// options say how to mount.
type options struct {
	memory     string        // --memory; "" = 64M
	pageFile   string        // maximum size of the page file; "" = 256M
	noPageFile bool          // mount without one
	flags      []string      // further flags of memfs mount
	env        []string      // added to the daemon's environment
	limit      time.Duration // after this long the watchdog ends the mount; 0 = 4 minutes
}

// mount is one memfs on a directory of its own.
type mount struct {
	t        testing.TB
	base     string // holds the page file, the log and the mount point
	dir      string // the mount point
	pageFile string
	logFile  string    // what the daemon wrote to its standard error
	cmd      *exec.Cmd // memfs mount -f
	exited   chan struct{}
	exitErr  error // valid once exited is closed
	pid      int   // the daemon's, by .proc/version
	children []int // its children at the time of mounting
	fds      []string
	watchdog *time.Timer
	done     bool
}

// mountMemfs mounts a memfs in front, as a child of the test, and has it unmounted and searched for leftovers when the
// test ends.
func mountMemfs(t testing.TB, o options) *mount {
	t.Helper()
	needMount(t)
	base := scratch(t)
	m := &mount{
		t: t, base: base,
		dir:      filepath.Join(base, "mnt"),
		pageFile: filepath.Join(base, "page", "file"),
		logFile:  filepath.Join(base, "log"),
		exited:   make(chan struct{}),
	}
	for _, dir := range []string{m.dir, filepath.Dir(m.pageFile)} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if o.memory == "" {
		o.memory = "64M"
	}
	if o.pageFile == "" {
		o.pageFile = "256M"
	}
	if o.limit == 0 {
		o.limit = 4 * time.Minute
	}
	if raceBuild {
		o.limit *= 3
	}

	log, err := os.Create(m.logFile)
	if err != nil {
		t.Fatal(err)
	}
	args := append([]string{"mount", "-f", "--memory", o.memory, "--pagefile", m.pageFileFlag(o)}, o.flags...)
	m.cmd = exec.Command(memfsBinary, append(args, m.dir)...)
	m.cmd.Stdout, m.cmd.Stderr = log, log
	m.cmd.Env = append(append(os.Environ(), daemonEnv(base)...), o.env...)
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	log.Close()
	go func() { m.exitErr = m.cmd.Wait(); close(m.exited) }()
	m.watchdog = time.AfterFunc(o.limit, m.abort)
	t.Cleanup(m.finish)

	m.waitLive()
	m.children = childrenOf(m.pid)
	m.fds = openFDs(m.pid)
	return m
}

// pageFileFlag is the argument of --pagefile.
func (m *mount) pageFileFlag(o options) string {
	if o.noPageFile {
		return "none"
	}
	return m.pageFile + ",size=" + o.pageFile
}

// daemonEnv makes the daemon check itself at unmount and write race reports under base.
func daemonEnv(base string) []string {
	return []string{"MEMFS_CHECK=1", "GOTRACEBACK=all", "GORACE=halt_on_error=1 log_path=" + filepath.Join(base, "race")}
}

// waitLive returns when the mount answers, and learns the daemon's process id.
func (m *mount) waitLive() {
	m.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		select {
		case <-m.exited:
			m.t.Fatalf("memfs mount -f ended before the mount was live: %v\n%s", m.exitErr, m.log())
		default:
		}
		// The log names the mount when the daemon has opened all that it will hold.
		if isMounted(m.dir) && strings.Contains(m.log(), " on "+m.dir) {
			if m.pid = daemonPID(m.dir); m.pid != 0 {
				return
			}
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("the mount was not live after 30 s\n%s", m.log())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// path is a path inside the mount.
func (m *mount) path(elem ...string) string {
	return filepath.Join(append([]string{m.dir}, elem...)...)
}

// log is the end of what the daemon has written.
func (m *mount) log() string {
	b, _ := os.ReadFile(m.logFile)
	return string(b[max(0, len(b)-16<<10):])
}

// finish ends the mount when the test did not, and shows the daemon's side of a failure.
func (m *mount) finish() {
	if !m.done {
		m.unmount()
	}
	if m.t.Failed() {
		if log := m.log(); log != "" {
			m.t.Logf("log of the daemon:\n%s", log)
		}
	}
	m.watchdog.Stop()
	if isMounted(m.dir) {
		m.kill()
	}
}

// unmount checks the manager, unmounts with memfs umount and looks for anything left.
func (m *mount) unmount() {
	m.t.Helper()
	if m.done {
		return
	}
	m.done = true
	select {
	case <-m.exited:
		m.t.Errorf("the daemon ended by itself: %v", m.exitErr)
		return
	default:
	}
	m.check()
	m.sameFDs()
	m.noteChildren()
	if out, err := exec.Command(memfsBinary, "umount", m.dir).CombinedOutput(); err != nil {
		m.t.Errorf("memfs umount: %v\n%s%s", err, out, holders(m.dir))
		m.kill()
		return
	}
	m.gone(0)
}

// noteChildren adds the children the daemon has now to those it had at the start.
func (m *mount) noteChildren() {
	for _, pid := range childrenOf(m.pid) {
		if !slices.Contains(m.children, pid) {
			m.children = append(m.children, pid)
		}
	}
}

// check fails the test unless the manager's own proof of its invariants succeeds.
func (m *mount) check() {
	m.t.Helper()
	b, err := os.ReadFile(m.path(".proc/check"))
	if err != nil {
		m.t.Errorf("check: %v", err)
	} else if got := strings.TrimSpace(string(b)); got != "ok" {
		m.t.Errorf("check says %q, want ok", got)
	}
}

// sameFDs fails the test when the daemon holds other descriptors than after mounting. Pipes are let pass: go-fuse keeps
// a pool of them for splice(2).
func (m *mount) sameFDs() {
	m.t.Helper()
	var now []string
	if !within(5*time.Second, func() bool { now = openFDs(m.pid); return len(now) <= len(m.fds) }) {
		m.t.Errorf("the daemon holds %d descriptors, %d after mounting:\n%s\nat first:\n%s",
			len(now), len(m.fds), strings.Join(now, "\n"), strings.Join(m.fds, "\n"))
	}
}

// gone fails the test unless nothing is left of the mount a moment after it ended: status is the exit status that the
// daemon must have had, or -1 for any.
func (m *mount) gone(status int) {
	m.t.Helper()
	m.watchdog.Stop()
	select {
	case <-m.exited:
	case <-time.After(20 * time.Second):
		m.t.Errorf("the daemon still runs 20 s after the unmount")
		m.kill()
		return
	}
	if got := m.cmd.ProcessState.ExitCode(); status >= 0 && got != status {
		m.t.Errorf("the daemon's exit status is %d, want %d", got, status)
	}
	leftovers(m.t, m.dir, m.pageFile, append(m.children, m.pid))
	if races, _ := filepath.Glob(filepath.Join(m.base, "race.*")); len(races) > 0 {
		report, _ := os.ReadFile(races[0])
		m.t.Errorf("data race in the daemon:\n%s", report)
	}
}

// leftovers fails the test for everything that outlived a mount: the mount, one of the processes, the page file, a
// descriptor on it, anything in the mount point or beside the page file.
func leftovers(t testing.TB, dir, pageFile string, pids []int) {
	t.Helper()
	if isMounted(dir) {
		t.Errorf("%s is still mounted", dir)
		return
	}
	for _, pid := range pids {
		if !within(5*time.Second, func() bool { return !alive(pid) }) {
			t.Errorf("process %d is still there: %s", pid, procLine(pid))
		}
	}
	for _, d := range []string{dir, filepath.Dir(pageFile)} {
		if left, err := os.ReadDir(d); err != nil {
			t.Error(err)
		} else if len(left) > 0 {
			t.Errorf("left in %s: %v", d, left)
		}
	}
	for pid, target := range fdsUnder(filepath.Dir(pageFile)) {
		t.Errorf("process %d (%s) still holds %s", pid, procLine(pid), target)
	}
}

// abort is the watchdog: it shows where the daemon stands and then cuts the mount, so that everybody who waits for it
// gets an error.
func (m *mount) abort() {
	m.t.Errorf("the mount hangs, or its test takes too long; kernel stacks:\n%s", kernelStacks(append(m.children, m.pid)))
	_ = syscall.Kill(m.pid, syscall.SIGQUIT) // the Go runtime prints all goroutines and ends
	time.Sleep(2 * time.Second)
	m.kill()
}

// kill ends the mount by force.
func (m *mount) kill() {
	for _, pid := range append(m.children, m.pid) {
		if pid != 0 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	_ = m.cmd.Process.Kill()
	_ = unix.Unmount(m.dir, unix.MNT_FORCE|unix.MNT_DETACH) // by force: a thread that waits for the mount keeps a process that was killed
}

// ctl gives the manager a command, as echo COMMAND > .proc/ctl does.
func (m *mount) ctl(command string) {
	m.t.Helper()
	if err := m.tryCtl(command); err != nil {
		m.t.Fatalf("%s: %v", command, err)
	}
}

func (m *mount) tryCtl(command string) error { return echo(m.path(".proc/ctl"), command) }

// echo writes a line to a control file the way a shell does.
func echo(name, line string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o666)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(line + "\n"); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// trimLoop trims everything over and over, with a pause in between, until stop is called, which says how often that was.
func (m *mount) trimLoop(pause time.Duration) (stop func() int) {
	quit, done := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-quit:
				done <- n
				return
			case <-time.After(pause):
			}
			// EBUSY is the manager's word for "half of all requests wait for the trimmer already".
			if err := m.tryCtl("trim"); err == nil {
				n++
			} else if !errors.Is(err, unix.EBUSY) {
				m.t.Errorf("trim: %v", err)
				<-quit
				done <- n
				return
			}
		}
	}()
	return func() int { close(quit); return <-done }
}

// pageOut sends every page of the mount to the page file and leaves none in memory, the host's included.
func (m *mount) pageOut() {
	m.t.Helper()
	m.ctl("trim")
	m.ctl("flush")
	m.ctl("empty standby")
}

// counters are the lines of vmstat or meminfo.
type counters map[string]uint64

// vmstat reads the manager's counters.
func (m *mount) vmstat() counters { m.t.Helper(); return m.counters("vmstat") }

func (m *mount) counters(name string) counters {
	m.t.Helper()
	b, err := os.ReadFile(m.path(".proc", name))
	if err != nil {
		m.t.Fatal(err)
	}
	c := counters{}
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		if n, err := strconv.ParseUint(fields[1], 10, 64); err == nil {
			c[strings.TrimSuffix(fields[0], ":")] = n
		}
	}
	return c
}

// get is a counter that must be there.
func (c counters) get(t testing.TB, name string) uint64 {
	t.Helper()
	n, ok := c[name]
	if !ok {
		t.Fatalf("no counter %s in %v", name, c)
	}
	return n
}

// since is how much a counter has grown since before.
func (c counters) since(t testing.TB, before counters, name string) uint64 {
	t.Helper()
	return c.get(t, name) - before.get(t, name)
}

// run runs a program to its end and returns its output; a failure ends the test.
func run(t testing.TB, dir string, name string, args ...string) string {
	t.Helper()
	return runInput(t, dir, "", name, args...)
}

// runInput is run with a standard input.
func runInput(t testing.TB, dir, input, name string, args ...string) string {
	t.Helper()
	out, err := tryRun(dir, input, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// tryRun runs a program to its end. The error of one that fails has what it wrote in it.
func tryRun(dir, input, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Stdin = strings.NewReader(input)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s%s", name, tail(strings.Join(args, " ")), err, tail(out.String()), tail(stderr.String()))
	}
	return out.String(), nil
}

// tail is the end of a text that may be long.
func tail(s string) string { return s[max(0, len(s)-4<<10):] }

// within polls until ok says so, and reports whether it did in time.
func within(d time.Duration, ok func() bool) bool {
	for deadline := time.Now().Add(d); ; time.Sleep(10 * time.Millisecond) {
		if ok() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// short takes the smaller value with -short.
func short[T any](full, small T) T {
	if testing.Short() {
		return small
	}
	return full
}

// compileC builds a program of testdata.
func compileC(t testing.TB, source string) string {
	t.Helper()
	program := filepath.Join(scratch(t), strings.TrimSuffix(filepath.Base(source), ".c"))
	run(t, "", "gcc", "-O2", "-Wall", "-Werror", "-o", program, source)
	return program
}

// must fails the test on an error of a call that has nothing else to say.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantErrno fails the test unless err carries the errno.
func wantErrno(t testing.TB, what string, err error, want syscall.Errno) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}
