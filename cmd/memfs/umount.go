package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

const (
	busyRetries = 20 // a file that was closed a moment ago may still be on its way out
	busyPause   = 50 * time.Millisecond
	// lazyWait is how long a detached mount gets to end at once, as it does when nothing uses it.
	lazyWait = 2 * time.Second
	// forceWait is how long the daemon of a mount that was forced away gets to end by itself.
	forceWait = 5 * time.Second
)

func newUmountCommand() *cobra.Command {
	var lazy, force bool
	timeout := time.Minute
	c := &cobra.Command{
		Use:   "umount [flags] MOUNTPOINT",
		Short: "Unmount, and wait for the daemon to end",
		Long: "umount takes a memfs mount away and returns when its daemon has ended. The contents are gone with it.\n" +
			"A mount whose daemon has died or hangs is taken away as well; with --force also one that answers nothing.",
		Args: oneArgument,
		RunE: func(c *cobra.Command, args []string) error {
			return runUmount(args[0], lazy, force, timeout, c.ErrOrStderr())
		},
	}
	flags := c.Flags()
	flags.BoolVarP(&lazy, "lazy", "l", false, "detach now, end when the last program that uses the mount lets go of it")
	flags.BoolVarP(&force, "force", "f", false, "abort whatever programs wait for; data not yet written back is lost")
	flags.DurationVar(&timeout, "timeout", timeout, "how long to wait for the kernel, then for the daemon")
	return c
}

func runUmount(path string, lazy, force bool, timeout time.Duration, stderr io.Writer) error {
	m, err := findMount(path)
	if err != nil {
		return err
	}
	_ = os.Chdir("/") // ours may be what keeps the mount busy
	daemon := findDaemon(m)
	if daemon != nil {
		defer daemon.close()
	}
	flags := 0
	if lazy {
		flags |= unix.MNT_DETACH
	}
	if force {
		flags |= unix.MNT_FORCE
	}

	// Unmounting writes back what programs have written, which may take its time.
	slow := time.AfterFunc(5*time.Second, func() {
		fmt.Fprintf(stderr, "memfs: %s: the kernel is writing back what programs have written; waiting up to %v\n", path, timeout)
	})
	for try := 0; ; try++ {
		err = unmount(m.mountpoint, flags, timeout)
		if err != unix.EBUSY || try == busyRetries {
			break
		}
		time.Sleep(busyPause)
	}
	if force && err == unix.EBUSY {
		// What programs wait for has failed by now, but they still have their files open.
		err = unmount(m.mountpoint, unix.MNT_DETACH, timeout)
	}
	slow.Stop()
	switch {
	case err == unix.EBUSY && systemCall(probeTimeout, "statfs", m.mountpoint) == errTimeout:
		return fmt.Errorf("%s: busy, and %v does not answer; `memfs umount --force %s` ends both, "+
			"and what programs wrote last is lost", path, daemon, path)
	case err == unix.EBUSY:
		return fmt.Errorf("%s: busy%s; end what uses it, or use `memfs umount --lazy %s`", path, users(m.mountpoint), path)
	case err == errTimeout:
		return fmt.Errorf("%s: unmounting did not end within %v: %v may hang; `memfs umount --force %s` aborts it, "+
			"and what programs wrote last is lost", path, timeout, daemon, path)
	case err == unix.EPERM:
		return fmt.Errorf("%s: not permitted: only root and who mounted it may unmount it", path)
	case err != nil:
		return fmt.Errorf("%s: unmount: %w", path, err)
	}
	if daemon == nil {
		return nil
	}
	if lazy {
		if !daemon.wait(lazyWait) {
			fmt.Fprintf(stderr, "memfs: %s: detached; %v ends when the last program that uses the mount lets go of it\n",
				path, daemon)
		}
		return nil
	}
	if force && !daemon.wait(forceWait) {
		daemon.kill()
	}
	if !daemon.wait(timeout) {
		return fmt.Errorf("%s: unmounted, but %v has not ended within %v: it hangs (end it with kill -9), "+
			"or the mount is bound elsewhere too (findmnt -t %s)", path, daemon, timeout, fsType)
	}
	return nil
}

// unmount takes the mount at place away, by ourselves if we may, else through fusermount3. The error is errTimeout,
// unix.EBUSY, or something else that has a text.
func unmount(place string, flags int, timeout time.Duration) error {
	err := systemCall(timeout, "umount", strconv.Itoa(flags|unix.UMOUNT_NOFOLLOW), place)
	if err != unix.EPERM {
		return err
	}
	helper, lookErr := fusermount()
	if lookErr != nil {
		return err
	}
	args := []string{"-u"}
	if flags&(unix.MNT_DETACH|unix.MNT_FORCE) != 0 {
		args = append(args, "-z") // the nearest to force that it has
	}
	child := exec.Command(helper, append(args, "--", place)...)
	child.Env = append(os.Environ(), "LC_ALL=C")
	code, output, err := runChild(child, timeout)
	switch {
	case err != nil:
		return err
	case code == 0:
		return nil
	case strings.Contains(output, "busy"):
		return unix.EBUSY
	case strings.Contains(output, "not found in"):
		return unix.EPERM // it is there, but not in what this user has mounted
	case output == "":
		return fmt.Errorf("%s failed with exit code %d", helper, code)
	}
	return errors.New(oneLine(errors.New(output)))
}

// fusermount is the path of the helper that mounts for those who may not.
func fusermount() (string, error) {
	path, err := exec.LookPath("fusermount3")
	if err != nil {
		return exec.LookPath("/bin/fusermount3") // without a PATH, as in a systemd unit
	}
	return path, nil
}

// maxUsers is how many programs a busy mount names.
const maxUsers = 3

// users names some mounts and programs that keep a mount busy. It reads links of /proc only, which do not touch the mount.
func users(place string) string {
	var found []string
	table, _ := mountTable()
	for _, e := range table {
		if e.mountpoint != place && within(e.mountpoint, place) && len(found) < maxUsers {
			found = append(found, e.mountpoint+" is mounted in it")
		}
	}
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, cwd := range links {
		process := filepath.Dir(cwd)
		what := ""
		for _, link := range []string{"cwd", "root", "exe"} {
			if target, err := os.Readlink(filepath.Join(process, link)); err == nil && within(target, place) {
				what = map[string]string{"cwd": "its working directory", "root": "its root", "exe": "its program file"}[link]
			}
		}
		if what == "" {
			fds, _ := os.ReadDir(filepath.Join(process, "fd"))
			for _, fd := range fds {
				if target, err := os.Readlink(filepath.Join(process, "fd", fd.Name())); err == nil && within(target, place) {
					what = "open files"
					break
				}
			}
		}
		if what == "" {
			continue
		}
		if len(found) >= maxUsers {
			found = append(found, "others")
			break
		}
		name, _ := os.ReadFile(filepath.Join(process, "comm"))
		found = append(found, fmt.Sprintf("process %s (%s) has %s there",
			filepath.Base(process), strings.TrimSpace(string(name)), what))
	}
	if found == nil {
		return ""
	}
	return ": " + strings.Join(found, ", ")
}

func within(path, place string) bool { return path == place || strings.HasPrefix(path, place+"/") }
