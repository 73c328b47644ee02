package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"memfs/fs"
	"memfs/mm"
	"memfs/mm/process"
	"memfs/mm/store"
)

// session is the life of one mount, in the process that serves it.
type session struct {
	o      *mountOptions
	log    *logrus.Logger
	parent *parentPipe
	manage *serviceManager // told of a session in front; nil: nobody
	place  string          // the mount point without links
	direct bool            // mounted by ourselves, not through fusermount3

	sys      *mm.System
	server   *fs.Server
	pages    pageFileSet
	launders bool
	started  time.Time
	fatal    sync.Once
}

// checkEnv makes the daemon prove the memory manager's invariants when it ends, and fail if one does not hold.
const checkEnv = "MEMFS_CHECK"

// runSession mounts, serves until the mount has ended, whoever ended it, and gives everything back. parent is nil in front.
func runSession(o *mountOptions, parent *parentPipe) (err error) {
	log, logFile, err := newLog(o)
	if err != nil {
		return err
	}
	if logFile != nil {
		defer logFile.Close()
	}
	s := &session{o: o, log: log, parent: parent, started: time.Now()}
	if manager := findServiceManager(); parent == nil {
		s.manage = manager
	}

	keepFromChildren()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	defer signal.Stop(signals)
	// A file size limit is an error of the page file, not the end of the daemon.
	signal.Ignore(unix.SIGXFSZ)
	if parent != nil {
		signal.Ignore(unix.SIGHUP)
	}

	if err := s.mount(); err != nil {
		s.tell("STATUS=" + oneLine(err))
		return err
	}
	recant := s.announce()
	s.logStart()
	s.tell("READY=1", fmt.Sprintf("STATUS=mounted on %s with %s of memory", s.place, &s.o.memory))
	if err := parent.ready(logFile); err != nil {
		log.Warnf("nobody waits for the mount any more (%v): unmounting", err)
		signals <- unix.SIGTERM
	}
	s.wait(signals)
	s.tell("STOPPING=1", "STATUS=unmounted")
	recant() // the device number may be another mount's from now on
	err = s.end()
	log.Infof("%s: unmounted", s.place)
	return err
}

// warn is for what the one who mounts should know.
func (s *session) warn(format string, args ...any) {
	err := fmt.Errorf(format, args...)
	s.log.Warn(err)
	s.parent.warn(err)
}

// tell lets the service manager know.
func (s *session) tell(assignments ...string) {
	if err := s.manage.tell(assignments...); err != nil {
		s.log.Warn(err)
	}
}

// mount builds the memory manager and the mount on it. After an error nothing is left.
func (s *session) mount() error {
	var err error
	if s.direct, err = mountRight(); err != nil {
		return err
	}
	if s.place, err = checkMountpoint(s.o.mountpoint, s.o.nonempty, s.warn); err != nil {
		return err
	}
	config, err := s.config()
	if err != nil {
		return err
	}
	closeStore := s.pages.close
	budget, err := mm.Plan(config)
	if err != nil {
		closeStore()
		return err
	}
	limitGo(budget, uint64(s.maxInflight()))
	if s.sys, err = mm.New(config); err != nil {
		closeStore()
		return fmt.Errorf("memory manager: %w", err)
	}
	s.sys.Start()

	// The daemon must not keep another file system busy, and permissions are what programs on the mount ask for.
	if err := os.Chdir("/"); err != nil {
		return errors.Join(err, s.sys.Close())
	}
	unix.Umask(0)

	said, err := capturingStderr(func() (err error) {
		s.server, err = fs.Mount(s.fsOptions(budget))
		return err
	})
	if err != nil {
		s.sys.Close()
		return s.mountError(err, said)
	}
	if config.DirtyBounded && s.server.DirtyLimit() == 0 {
		s.warn("%s: the kernel did not take the bound on data not yet written back; its own figure holds", s.o.mountpoint)
	}
	return nil
}

// errNotPermitted says what a mount takes.
var errNotPermitted = errors.New("not permitted to mount: be root, or install fusermount3 (package fuse3)")

// mountRight says how the mount can be made: by ourselves (direct), or through fusermount3.
func mountRight() (direct bool, err error) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return false, fmt.Errorf("/dev/fuse: %s: load the kernel's fuse module (modprobe fuse), "+
			"or give the container the device", reason(err))
	}
	opened := unix.Access("/dev/fuse", unix.R_OK|unix.W_OK)
	if hasCapability(unix.CAP_SYS_ADMIN) && opened == nil {
		return true, nil
	}
	if _, err := fusermount(); err != nil {
		return false, errNotPermitted
	}
	return false, nil
}

// hasCapability reports whether the effective set holds a capability.
func hasCapability(c uint) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[c/32].Effective&(1<<(c%32)) != 0
}

// config is the memory manager's configuration. It makes the page file.
func (s *session) config() (mm.Config, error) {
	c := s.o.config(s.o.memory, 0)
	c.Listener = s.listener()
	c.DirtyBounded = s.direct && canBoundDirty()
	c.HostFree = memAvailable
	if free, ok := memAvailable(); ok && c.Guarantee > free {
		return c, fmt.Errorf("--min %s cannot be had: %s are available on this machine; give less", &s.o.reserve, roundSize(free))
	}
	// What is wrong with the memory alone is said before any file is made.
	if _, err := mm.Plan(c); err != nil {
		return c, err
	}
	if z := c.Compressed; z != nil {
		// Chunks that are not full may take it over its limit for a moment.
		compressed, err := store.NewCompressed(s.o.codec, 2*z.Limit)
		if err != nil {
			return c, err
		}
		z.Store = compressed
	}
	slots, err := s.o.pageFileFor()
	if err != nil || s.o.pageFile.none {
		return c, err
	}
	for i, spec := range append([]pageFileSpec{s.o.pageFile}, s.o.morePages...) {
		least := slots * mm.PageSize
		if i > 0 {
			least = 0
		}
		f, err := s.openPageFile(spec, uint64(s.o.memory), least)
		if err != nil {
			s.pages.close()
			return c, err
		}
		c.PageFiles = append(c.PageFiles[:min(i, len(c.PageFiles))], f)
	}
	if s.o.inject != "" {
		s.warn("page files are made to fail: %s", s.o.inject)
	}
	return c, nil
}

// listener logs events, and follows a change of the memory.
func (s *session) listener() mm.Listener {
	l := listener(s.log)
	l.Resized = func(b mm.Budget) {
		limitGo(b, uint64(s.maxInflight()))
		s.log.Infof("%s: the memory is %s now, in %d frames; %s can be promised", s.place, formatSize(b.Memory), b.Frames,
			roundSize(b.CommitLimit*mm.PageSize))
	}
	return l
}

// canBoundDirty guesses whether the mount's backing device will take a bound on dirty data: it has to be known before
// there is one. Other devices have the same files.
func canBoundDirty() bool {
	dirs, err := os.ReadDir("/sys/class/bdi")
	if err != nil {
		return false
	}
	for _, d := range dirs {
		dir := "/sys/class/bdi/" + d.Name()
		if unix.Access(dir+"/max_bytes", unix.W_OK) == nil && unix.Access(dir+"/strict_limit", unix.W_OK) == nil {
			return true
		}
	}
	return false
}

// Request buffers are Go memory outside the budget, so they are bounded by it.
const (
	smallMemory   = 256 << 20 // below this, requests are small
	smallRequest  = 256 << 10
	largeRequest  = 1 << 20
	mostRequests  = 32
	leastRequests = 4
)

func (s *session) maxRequest() int {
	if s.o.memory < smallMemory {
		return smallRequest
	}
	return largeRequest
}

func (s *session) maxInflight() int {
	request := s.maxRequest()
	return max(leastRequests*request, min(mostRequests*request, int(s.o.memory/8)))
}

// limitGo sets the garbage collector up for a heap of request buffers and nodes. The bound for the whole process is
// Memory × 1.1 + 64 MiB; nodes are inside Memory.
func limitGo(b mm.Budget, inflight uint64) {
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(int64(24<<20 + min(inflight, 16<<20) + b.Memory/16 + min(b.InodeMax, b.Memory/2)))
}

func (s *session) fsOptions(b mm.Budget) fs.Options {
	return fs.Options{
		Mountpoint:  s.place,
		System:      s.sys,
		Inodes:      b.Inodes,
		ProcName:    s.o.procName.name,
		NX:          process.Policy(s.o.nx),
		ProcVisible: s.o.procName.visible,
		Mode:        uint32(s.o.mode),
		UID:         uint32(s.o.uid),
		GID:         uint32(s.o.gid),
		Source:      s.o.source,
		Flags:       s.o.vfs.bits,
		AllowOther:  s.o.allowOther,
		DirectMount: s.direct,
		MaxRequest:  s.maxRequest(),
		MaxInflight: s.maxInflight(),
		Version:     version(),

		OpenPageFile: s.addPageFile,
		Inject:       s.pages.injector(s.o.inject != ""),

		Facts: s.facts,
		Fatal: s.crash,
		Log:   s.log.Warnf,
	}
}

// facts are the lines of .proc/version about this session.
func (s *session) facts() [][2]string {
	yes := map[bool]string{false: "no", true: "yes"}
	var uts unix.Utsname
	unix.Uname(&uts)
	dirty := "the kernel's own figure"
	if s.server != nil && s.server.DirtyLimit() > 0 {
		dirty = roundSize(s.server.DirtyLimit())
	}
	files := s.pages.in(s.sys.Snapshot().PageFiles)
	file := "none"
	if len(files) > 0 {
		var names []string
		for _, f := range files {
			names = append(names, fmt.Sprintf("%s, at most %s", f.Name(), roundSize(f.max*mm.PageSize)))
		}
		file = strings.Join(names, "; ")
	}
	facts := [][2]string{
		{"Kernel", unix.ByteSliceToString(uts.Release[:])},
		{"Process", fmt.Sprint(os.Getpid())},
		{"Since", s.started.Format(time.RFC3339)},
		{"Mount point", s.place},
		{"Memory", formatSize(s.sys.Budget().Memory)},
		{"Page file", file},
	}
	if len(files) > 0 {
		encryption := "none"
		if s.o.encrypt {
			encryption = "AES-256-GCM"
		}
		direct, reserved := true, true
		for _, f := range files {
			direct, reserved = direct && f.Direct(), reserved && f.Reserves()
		}
		facts = append(facts,
			[2]string{"Encryption", encryption},
			[2]string{"Direct I/O", yes[direct]},
			[2]string{"Reserved space", yes[reserved]})
	}
	facts = append(facts, [2]string{"Wiped when freed", yes[s.o.wipe]})
	if n := s.sys.Guaranteed(); n > 0 {
		facts = append(facts, [2]string{"Guaranteed", formatSize(n * mm.PageSize)})
	}
	if z := s.sys.Budget().Compressed; z > 0 {
		facts = append(facts, [2]string{"Compressed memory", s.o.codec + ", at most " + roundSize(z)})
	}
	return append(facts,
		[2]string{"Mounted directly", yes[s.direct]},
		[2]string{"Other users", yes[s.o.allowOther]},
		[2]string{"Request", roundSize(uint64(s.maxRequest()))},
		[2]string{"Requests in flight", roundSize(uint64(s.maxInflight()))},
		[2]string{"Dirty limit", dirty},
		[2]string{"Launderer", yes[s.launders]},
		[2]string{"I/O flusher", yes[isIOFlusher()]},
	)
}

// capturingStderr runs f and returns what was written to os.Stderr meanwhile: go-fuse has fusermount3 write there what
// it thinks, which belongs into our one line.
func capturingStderr(f func() error) (said string, err error) {
	r, w, pipeErr := os.Pipe()
	if pipeErr != nil {
		return "", f()
	}
	old := os.Stderr
	os.Stderr = w
	text := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(io.LimitReader(r, 4096))
		text <- string(b)
		io.Copy(io.Discard, r)
		r.Close()
	}()
	err = f()
	os.Stderr = old
	w.Close()
	return <-text, err
}

// mountError says what a failed mount was about.
func (s *session) mountError(err error, said string) error {
	switch said = strings.TrimSpace(said); {
	case said != "":
		if _, rest, ok := strings.Cut(said, "fusermount3: "); ok {
			said = rest
		}
		if strings.Contains(said, "/dev/fuse: Permission denied") {
			said += "; mount as root, or let all users open it (chmod 666 /dev/fuse)"
		}
		return fmt.Errorf("%s: cannot mount: fusermount3: %s", s.o.mountpoint, oneLine(errors.New(said)))
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%s: %w", s.o.mountpoint, errNotPermitted)
	}
	return fmt.Errorf("%s: cannot mount: %w", s.o.mountpoint, err)
}

// announce does what takes the live mount: the beacon, the launderer, and the eye on remounts. The mount works without
// any of them. The function that it returns puts beacon and eye out.
func (s *session) announce() (recant func()) {
	recant = func() {}
	table, err := mountTable()
	if err != nil {
		s.log.Warnf("mount table: %v", err)
		return recant
	}
	m, found := topMount(table, s.place)
	if !found || m.fsType != fsType {
		s.log.Warnf("%s: the mount is not in the mount table", s.place)
		return recant
	}
	if l, err := startLaunderer(s.place, m.device, s.server.Path, s.log.Warnf); err != nil {
		s.log.Infof("no launderer, plain invalidation serves: %v", err)
	} else {
		s.launders = true
		s.server.SetLaunderer(l)
	}
	unfollow, err := followRemounts(m, s.server.SetFlags)
	if err != nil {
		s.log.Infof("access times will not follow a remount: %v", err)
		unfollow = func() {}
	}
	b, err := light(m.device, beaconLine{PID: os.Getpid(), Proc: s.o.procName.name, Version: version()})
	if err != nil {
		s.log.Infof("no beacon, umount will not wait for this process: %v", err)
		return unfollow
	}
	return func() {
		b.Close()
		unfollow()
	}
}

// logStart writes the memory arithmetic.
func (s *session) logStart() {
	s.log.Infof("memfs %s on %s", version(), s.place)
	for line := range strings.SplitSeq(strings.TrimSpace(s.sys.Snapshot().Budget.String()), "\n") {
		s.log.Info(line)
	}
	debug.FreeOSMemory()
}

const (
	// busyInterval is how long a signalled daemon waits before it tries a busy mount again.
	busyInterval = time.Second
	// oneSignal is the time in which several signals are one: who ends a process group signals its members as well.
	oneSignal = 300 * time.Millisecond
)

// wait returns when the mount has ended. The first signal unmounts as soon as nothing uses the mount; the second one
// takes it out of sight at once, and it ends when the last program lets go of it.
func (s *session) wait(signals <-chan os.Signal) {
	ended := make(chan struct{})
	go func() {
		s.server.Wait()
		close(ended)
	}()
	var tried chan error // the attempt under way
	var again <-chan time.Time
	attempt := func(lazy bool) {
		tried, again = make(chan error, 1), nil
		go func(result chan<- error) {
			if lazy {
				result <- unmount(s.place, unix.MNT_DETACH, time.Minute)
			} else {
				result <- s.server.Unmount()
			}
		}(tried)
	}
	signalled, said := 0, false
	var last time.Time
	for {
		select {
		case <-ended:
			return
		case sig := <-signals:
			if time.Since(last) < oneSignal {
				continue
			}
			last = time.Now()
			signalled++
			s.log.Infof("%v: unmounting %s", sig, s.place)
			s.tell("STOPPING=1", "STATUS=unmounting "+s.place)
			if signalled <= 2 {
				attempt(signalled == 2)
			}
		case err := <-tried:
			tried = nil
			if err == nil {
				continue
			}
			if !said {
				said = true
				who := users(s.place)
				s.log.Warnf("%s: cannot unmount: %v%s; trying on; a second signal detaches the mount at once", s.place, err, who)
				s.tell(fmt.Sprintf("STATUS=cannot unmount %s%s", s.place, who))
			}
			again = time.After(busyInterval)
		case <-again:
			attempt(signalled >= 2)
		}
	}
}

// end gives everything back and reports what was not.
func (s *session) end() error {
	var failed error
	if os.Getenv(checkEnv) == "1" {
		for _, err := range s.sys.Check() {
			s.log.Errorf("check: %v", err)
			failed = fmt.Errorf("%s: check at unmount: %w", s.place, err)
		}
	}
	if err := s.sys.Close(); err != nil {
		s.log.Errorf("%s: %s", s.place, oneLine(err))
		if os.Getenv(checkEnv) == "1" {
			failed = errors.Join(failed, err)
		}
	}
	return failed
}

// crash ends the process after a handler panicked: a bug must be seen, not turn into an EIO that nobody looks at.
func (s *session) crash(value any, stack []byte) {
	s.fatal.Do(func() {
		s.log.Errorf("bug: a handler panicked: %v\n%s", value, stack)
		// Programs on the mount get errors from here on; the directory is free for the next mount.
		if err := unmount(s.place, unix.MNT_DETACH, 2*time.Second); err != nil {
			s.log.Errorf("%s: left behind: %v", s.place, err)
		}
		exit(exitBug)
	})
	select {} // another handler's panic, while the first ends the process
}
