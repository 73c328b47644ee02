package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// mount(8) has a helper mount file systems that the kernel does not know: /sbin/mount.memfs for the type memfs, and
// /sbin/mount.fuse.memfs for fuse.memfs. Both are links to this program, which knows them by the name that it is started
// under. Without the second one, mount(8) has mount.fuse3 start us as `memfs SPEC DIR -o …`.
//
//	mount.memfs SPEC DIR [-sfnv] [-N namespace] [-o options] [-t type.subtype]
//
// The exit code is made of mount(8)'s bits, and a helper returns when the mount is live.

// helperNames are the names of the program as a helper.
var helperNames = []string{"mount.memfs", "mount.fuse.memfs"}

const (
	mountDone        = 0
	mountUsage       = 1  // wrong invocation, or not permitted
	mountSystem      = 2  // no process, no descriptor, no memory
	mountBug         = 4  // in memfs
	mountInterrupted = 8  // by a signal
	mountFailed      = 32 // all else
)

// helperName is the name of a mount helper that the program was started under, or "".
func helperName(arg0 string) string {
	base := filepath.Base(arg0)
	for _, name := range helperNames {
		if base == name {
			return name
		}
	}
	return ""
}

// isHelperCall knows the command line that mount.fuse3 makes.
func isHelperCall(args []string, verbs []string) bool {
	if len(args) != 4 || args[2] != "-o" || !strings.HasPrefix(args[1], "/") {
		return false
	}
	for _, verb := range verbs {
		if verb == args[0] {
			return false
		}
	}
	return true
}

// helperCall is a command line of mount(8)'s.
type helperCall struct {
	source, dir string
	options     []string
	types       string
	namespace   string

	sloppy, fake, noMtab, verbose, help, version bool
}

// parseHelperCall reads the command line, in which the order is free.
func parseHelperCall(name string, args []string) (*helperCall, error) {
	c := &helperCall{}
	f := pflag.NewFlagSet(name, pflag.ContinueOnError)
	f.Usage = func() {}
	f.StringArrayVarP(&c.options, "options", "o", nil, "")
	f.StringVarP(&c.types, "types", "t", "", "")
	f.StringVarP(&c.namespace, "namespace", "N", "", "")
	f.BoolVarP(&c.sloppy, "sloppy", "s", false, "")
	f.BoolVarP(&c.fake, "fake", "f", false, "")
	f.BoolVarP(&c.noMtab, "no-mtab", "n", false, "") // there is none to write
	f.BoolVarP(&c.verbose, "verbose", "v", false, "")
	f.BoolVarP(&c.help, "help", "h", false, "")
	f.BoolVarP(&c.version, "version", "V", false, "")
	if err := f.Parse(args); err != nil {
		return nil, usageError("%v; %s", err, c.usage(name))
	}
	if c.help || c.version {
		return c, nil
	}
	if f.NArg() != 2 || f.Arg(1) == "" {
		return nil, usageError("%d names were given, and a helper takes two, what to mount and where; %s", f.NArg(), c.usage(name))
	}
	c.source, c.dir = f.Arg(0), f.Arg(1)
	if c.source == "" {
		c.source = "none"
	}
	return c, nil
}

func (*helperCall) usage(name string) string {
	return fmt.Sprintf("usage: %s SPEC DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]", name)
}

// mountOptions are what the call says, in the form of the verb mount.
func (c *helperCall) mountOptions() (*mountOptions, error) {
	o := &mountOptions{}
	f := pflag.NewFlagSet("mount", pflag.ContinueOnError)
	o.register(f)
	o.mountpoint, o.source, o.extra, o.sloppy = c.dir, c.source, c.options, c.sloppy
	o.nonempty = true // as every mount(8)
	if err := o.finish(f); err != nil {
		return nil, err
	}
	o.foreground = false
	o.args = []string{"mount", "--nonempty", "--source=" + o.source, fmt.Sprint("--sloppy=", c.sloppy)}
	for _, list := range c.options {
		o.args = append(o.args, "--options="+list)
	}
	o.args = append(o.args, "--", c.dir)
	return o, nil
}

// arguments are the call's command line without the namespace.
func (c *helperCall) arguments() []string {
	args := []string{}
	for _, f := range []struct {
		on   bool
		flag string
	}{{c.sloppy, "-s"}, {c.fake, "-f"}, {c.noMtab, "-n"}, {c.verbose, "-v"}} {
		if f.on {
			args = append(args, f.flag)
		}
	}
	for _, list := range c.options {
		args = append(args, "-o", list)
	}
	return append(args, "--", c.source, c.dir)
}

// runHelper is the program as a mount helper. It returns the exit code.
func runHelper(name string, args []string, stdout, stderr io.Writer) int {
	c, err := parseHelperCall(name, args)
	if err == nil {
		switch {
		case c.help:
			fmt.Fprintf(stdout, "%s; `memfs mount --help` lists the options\n", c.usage(name))
			return mountDone
		case c.version:
			fmt.Fprintf(stdout, "%s %s\n", name, version())
			return mountDone
		}
		err = c.run(name, stdout)
	}
	if err == nil {
		return mountDone
	}
	fmt.Fprintf(stderr, "%s: %s\n", name, oneLine(err))
	return helperExit(err)
}

// helperExit is an error in mount(8)'s bits.
func helperExit(err error) int {
	var coded exitError
	var system systemError
	switch {
	case errors.Is(err, errInterrupted):
		return mountInterrupted
	case errors.Is(err, errNotPermitted), errors.As(err, &coded) && coded.code == exitUsage:
		return mountUsage
	case errors.As(err, &coded) && coded.code == exitBug:
		return mountBug
	case errors.As(err, &system):
		return mountSystem
	}
	return mountFailed
}

// errInterrupted says that a signal ended the helper before the mount was live.
var errInterrupted = errors.New("interrupted; the mount is given up")

// systemError is an error of this system rather than of the mount.
type systemError struct{ error }

func (e systemError) Unwrap() error { return e.error }

func (c *helperCall) run(name string, stdout io.Writer) error {
	if c.namespace != "" {
		return c.enterNamespace(name)
	}
	o, err := c.mountOptions()
	if err != nil {
		return err
	}
	say := func(format string, args ...any) {
		if c.verbose {
			fmt.Fprintf(stdout, "%s: "+format+"\n", append([]any{name}, args...)...)
		}
	}
	if c.fake {
		say("would mount %s on %s with %s of memory", o.source, c.dir, &o.memory)
		return nil
	}
	if err := c.mount(o); err != nil {
		return err
	}
	if o.remount {
		say("%s remounted", c.dir)
	} else {
		say("%s mounted on %s with %s of memory", o.source, c.dir, &o.memory)
	}
	return nil
}

// mount mounts and returns when the mount is live, or at a signal. The daemon, which finds nobody waiting then, unmounts.
func (c *helperCall) mount(o *mountOptions) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	result := make(chan error, 1)
	go func() { result <- runMount(o) }()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return errInterrupted
	}
}

// enterNamespace starts the program anew in another mount namespace, that of `mount -N`: a path, or a process by number.
func (c *helperCall) enterNamespace(name string) error {
	path := c.namespace
	if _, err := strconv.Atoi(path); err == nil {
		path = "/proc/" + path + "/ns/mnt"
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return systemError{fmt.Errorf("-N %s: %w", c.namespace, err)}
	}
	defer unix.Close(fd)
	here, err := os.Getwd()
	if err != nil {
		here = "/"
	}
	// The namespace becomes this thread's, and exec leaves no other thread. A thread that shares its working directory
	// with others may not move. On failure the thread must not be used again, so it stays locked and ends with us.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return systemError{fmt.Errorf("-N %s: unshare: %w", c.namespace, err)}
	}
	if err := unix.Setns(fd, unix.CLONE_NEWNS); err != nil {
		return systemError{fmt.Errorf("-N %s: setns: %w", c.namespace, err)}
	}
	_ = unix.Chdir(here) // setns goes to the root; the directory need not be there
	return systemError{unix.Exec(selfExe, append([]string{name}, c.arguments()...), os.Environ())}
}
