// Package integration tests memfs as the programs that use it see it: through a real mount, served by a process of its
// own, with the command and the control files as the only ways in. It never imports the memory manager.
//
// # How a test runs
//
//	TestMain            builds cmd/memfs once, with -race when the test itself is a race build
//	mountMemfs          mounts it in front (-f) as a child process on a directory of its own
//	  the test          programs, files, control files
//	(mount).unmount     .proc/check must say ok; then memfs umount; then nothing may be left: no mount, no process,
//	                    no descriptor, no page file, no file in the mount point, no race report, exit status 0
//
// A native file system is the oracle: every case about POSIX runs on a tmpfs first and only then on memfs, so a case
// that expects too much fails there.
//
// Nothing here touches the mount from the serving process, and whatever hangs is ended: a watchdog prints the
// goroutines of the daemon and aborts its connection, so that a deadlock fails one test in place of the machine.
//
// The tests need root and /dev/fuse, besides fio, sqlite3, git, gcc, python3, stress-ng and what every Linux has. Without root or
// /dev/fuse they are skipped, unless CI=true is set: then that is a failure. -short takes smaller sizes.
package integration
